"""The mobile bundle: `.ort` files, required-operator configuration, manifest."""
