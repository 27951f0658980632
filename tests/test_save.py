"""Saving: where output may go, what a full disk or an interruption leaves behind, model and data as a pair."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import hostile_models as hm
import numpy as np
import onnx
import pytest
from hostile_models import FLOAT, model, node
from onnx import numpy_helper
from onnx_meaning import meaning
from opgraft.cli.main import main
from opgraft.ir import destination
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.destination import write_text
from opgraft.ir.errors import OutputError
from opgraft.ir.save import model_bytes, save

WEIGHT = np.random.default_rng(4).standard_normal((4, 2000)).astype(np.float32)


def weighty(scale=1.0):
    return model([node("MatMul", ["x", "w"], ["y"])], initializers=[numpy_helper.from_array(WEIGHT * scale, "w")])


@pytest.fixture
def source(tmp_path):
    """A model with external data in a folder of its own."""
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(weighty(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "m.onnx"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refused(program, output, words, **options):
    with pytest.raises(OutputError, match=words) as raised:
        save(program, output, **options)
    assert raised.value.exit_code == 4
    assert "\n" not in str(raised.value)


# Places that are refused


def same_path(folder):
    return folder / "m.onnx"


def relative_path(folder):
    return folder / ".." / folder.name / "m.onnx"


def hard_link(folder):
    os.link(folder / "m.onnx", folder / "link.onnx")
    return folder / "link.onnx"


def symbolic_link(folder):
    (folder / "link.onnx").symlink_to("m.onnx")
    return folder / "link.onnx"


def linked_folder(folder):
    (folder.parent / "linked").symlink_to(folder)
    return folder.parent / "linked" / "m.onnx"


def data_file_is_a_link_to_the_input(folder):
    (folder / "o.onnx.data").symlink_to("m.onnx")
    return folder / "o.onnx"


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    "make", [same_path, relative_path, hard_link, symbolic_link, linked_folder, data_file_is_a_link_to_the_input]
)
def test_the_input_is_never_the_output(make, force, source):
    program = capture_onnx(source)
    output = make(source.parent)
    before = contents(source.parent)
    refused(program, output, "is the input|exists" if force is False else "is the input", force=force)
    assert contents(source.parent) == before


@pytest.mark.parametrize("name", ["w.bin", "b.onnx", "link.onnx"])
def test_the_inputs_weights_are_never_overwritten(name, tmp_path):
    # As the output itself, as the output's data file, and through a link.
    made = hm.external(tmp_path, (0, 16), location="b.onnx.data" if name == "b.onnx" else "w.bin")
    (tmp_path / "b.onnx.data").write_bytes(bytes(64))
    (tmp_path / "link.onnx").symlink_to("w.bin")
    program = capture_onnx(hm.write_model(tmp_path, made))
    before = contents(tmp_path)
    refused(program, tmp_path / name, "input's weights", force=True)
    assert contents(tmp_path) == before


def test_an_existing_output_needs_force(source, tmp_path):
    program = capture_onnx(source)
    for name in ("o.onnx", "p.onnx.data"):
        (tmp_path / name).write_text("precious")
    refused(program, tmp_path / "o.onnx", "exists.*--force")
    refused(program, tmp_path / "p.onnx", "exists.*--force")
    assert (tmp_path / "o.onnx").read_text() == (tmp_path / "p.onnx.data").read_text() == "precious"
    save(program, tmp_path / "o.onnx", force=True)
    assert meaning(onnx.load(tmp_path / "o.onnx")) == meaning(weighty())


@pytest.mark.parametrize("force", [True, False])
def test_places_that_are_no_file(force, source, tmp_path):
    program = capture_onnx(source)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "file").write_text("")
    for name, words in [
        ("in", "is a folder"),
        ("nowhere/o.onnx", "folder does not exist"),
        ("file/o.onnx", "folder does not exist"),
        ("pipe", "no regular file"),
        ("null", "no file"),
        ("n" * 300, "name too long"),
        ("nul\0.onnx", "null"),
    ]:
        refused(program, tmp_path / name, words, force=force)
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]


def test_a_folder_without_permission(source, tmp_path, monkeypatch):
    program = capture_onnx(source)
    # The tests may run as a user whom no permission stops.
    monkeypatch.setattr(destination.os, "access", lambda path, mode: False)
    refused(program, tmp_path / "o.onnx", "no permission")


def test_a_link_is_replaced_not_followed(source, tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "o.onnx").symlink_to("target")
    save(capture_onnx(source), tmp_path / "o.onnx", force=True)
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "o.onnx").is_symlink()


def test_outputs_have_ordinary_permissions(source, tmp_path):
    umask = os.umask(0o027)
    try:
        save(capture_onnx(source), tmp_path / "o.onnx")
    finally:
        os.umask(umask)
    for name in ("o.onnx", "o.onnx.data"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


# Failures on the way


FULL = """
import resource, signal, sys
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import OutputError
from opgraft.ir.save import save
program = capture_onnx(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    save(program, sys.argv[2], force=True, external=sys.argv[4] == "external")
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 100, 8192, 20_000, 31_999])
@pytest.mark.parametrize("form", ["inline", "external"])
def test_a_write_that_fails_leaves_the_old_pair(limit, form, source, tmp_path):
    """A limit on the size of files stands for a full disk: the kernel refuses the write in the same places."""
    output = tmp_path / "out" / "o.onnx"
    output.parent.mkdir()
    output.write_text("old model")
    (tmp_path / "out" / "o.onnx.data").write_text("old data")
    before = contents(output.parent)
    done = subprocess.run(
        [sys.executable, "-c", FULL, source, output, str(limit), form], capture_output=True, text=True, cwd=tmp_path
    )
    assert "cannot be written" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert contents(output.parent) == before


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting needs rights")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full(source, small_disk):
    refused(capture_onnx(source), small_disk / "o.onnx", "disk is full")
    refused(capture_onnx(source), small_disk / "o.onnx", "disk is full", external=False)
    assert not contents(small_disk)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("had_output", [True, False])
def test_model_and_data_are_a_pair(code, failing, had_output, source, tmp_path, monkeypatch):
    """Whichever rename fails, the folder is as before: never a new model with old data or the other way round."""
    output = tmp_path / "out" / "o.onnx"
    output.parent.mkdir()
    if had_output:
        save(capture_onnx(hm.write_model(tmp_path, weighty(2))), output, external=True)
    before = contents(output.parent)
    program = capture_onnx(source)
    calls = []
    real = os.replace

    def replace(a, b):
        calls.append((a, b))
        if len(calls) == failing:
            raise OSError(code, os.strerror(code))
        real(a, b)

    monkeypatch.setattr(destination.os, "replace", replace)
    if failing > 2 + had_output:
        save(program, output, force=True)
        assert sorted(contents(output.parent)) == ["o.onnx", "o.onnx.data"]
        assert meaning(onnx.load(output)) == meaning(weighty())
        return
    refused(program, output, "disk is full" if code != errno.EIO else "cannot be written", force=True)
    assert contents(output.parent) == before


def test_an_interruption_while_writing_leaves_nothing(source, tmp_path, monkeypatch):
    program = capture_onnx(source)
    tensor = program.graph.initializers["w"].const_value
    written = []

    def interrupted(self, file):
        written.append(file.write(b"half"))
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tensor), "tofile", interrupted)
    before = contents(tmp_path)
    for external in (True, False):
        with pytest.raises(KeyboardInterrupt):
            save(program, tmp_path / "o.onnx", external=external)
    assert written == [4, 4]
    assert contents(tmp_path) == before
    # The program in memory is whole again.
    monkeypatch.undo()
    save(program, tmp_path / "o.onnx")
    assert meaning(onnx.load(tmp_path / "o.onnx")) == meaning(weighty())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_run_leaves_nothing(number, code, tmp_path):
    """The model never ends in the runtime, so that the signal comes in the middle of verification."""
    state = [hm.value_info("i", hm.INT64, []), hm.value_info("c", hm.BOOL, []), hm.value_info("v", FLOAT, None)]
    body = onnx.helper.make_graph(
        [node("Identity", ["c"], ["d"]), node("Mul", ["v", "v"], ["w"])],
        "body", state, [hm.value_info("d", hm.BOOL, []), hm.value_info("w", FLOAT, None)],
    )  # fmt: skip
    trips = [numpy_helper.from_array(np.array(2**62), "n"), numpy_helper.from_array(np.array(True), "t")]
    hm.write_model(tmp_path, model([node("Loop", ["n", "t", "x"], ["y"], body=body)], initializers=trips))
    (tmp_path / "temporary").mkdir()
    before = contents(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "opgraft.cli.main", "m.onnx"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path / "temporary")}, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".opgraft-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    after = contents(tmp_path)
    # ONNX Runtime's own file, written when it is imported.
    after.pop("temporary/.ses", None)
    assert after == before


# The command


@pytest.mark.parametrize("make", [same_path, hard_link, symbolic_link, relative_path])
@pytest.mark.parametrize("more", [[], ["--force"]])
def test_the_command_refuses_its_input_as_output(make, more, source, capsys):
    before = contents(source.parent)
    output = make(source.parent)
    with pytest.raises(SystemExit) as stop:
        main([str(source), "-o", str(output), "--no-measure", "--verify", "off", *more])
    assert stop.value.code == 4
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert {k: v for k, v in contents(source.parent).items() if not k.startswith("link")} == before


def test_the_command_never_overwrites_the_inputs_weights(source, capsys):
    before = contents(source.parent)
    with pytest.raises(SystemExit) as stop:
        main([str(source), "-o", str(source.parent / "w.bin"), "--force", "--no-measure"])
    assert stop.value.code == 4
    assert "input's weights" in capsys.readouterr().err
    assert contents(source.parent) == before


def test_the_command_overwrites_a_pair_with_force(source, tmp_path, capsys):
    output = tmp_path / "o.onnx"
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main([str(source), "-o", str(output), "--no-measure", "--force"])
        assert stop.value.code == 0, capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "o.onnx", "o.onnx.data"]
    assert meaning(onnx.load(output)) == meaning(weighty())


# Forms


def test_inline_and_external_say_the_same(source, tmp_path):
    for form in (True, False, None):
        files = save(capture_onnx(source), tmp_path / f"{form}.onnx", external=form)
        assert len(files) == (1 if form is False else 2)
        assert meaning(onnx.load(tmp_path / f"{form}.onnx")) == meaning(weighty())
    assert meaning(onnx.load_from_string(model_bytes(capture_onnx(source)))) == meaning(weighty())


def test_the_same_program_gives_the_same_bytes(source, tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(capture_onnx(source), tmp_path / name / "o.onnx")
        made.append(contents(tmp_path / name))
    assert made[0] == made[1]


def test_saving_does_not_change_the_program(source, tmp_path):
    program = capture_onnx(source)
    before = program.graph.initializers["w"].const_value
    for external in (True, False):
        save(program, tmp_path / f"{external}.onnx", external=external)
        assert program.graph.initializers["w"].const_value is before


def test_more_than_protobuf_holds_goes_outside_or_is_refused(tmp_path):
    # 3 GiB of hole: it is not written, since the place is checked first.
    made = hm.external(tmp_path, (0, 3 << 30), n_bytes=0, dims=(3 << 28,))
    os.truncate(tmp_path / "w.bin", 3 << 30)
    program = capture_onnx(hm.write_model(tmp_path, made))
    refused(program, tmp_path / "o.onnx", "too large for one file", external=False)
    with pytest.raises(OutputError, match="too large for one message"):
        model_bytes(program)
    assert not (tmp_path / "o.onnx").exists()


def test_alignment_and_tied_weights_in_the_data_file(tmp_path):
    tensors = [numpy_helper.from_array(WEIGHT, "a"), numpy_helper.from_array(WEIGHT[0], "b")]
    made = model([node("Sum", ["a", "a2", "b"], ["y"])], [], initializers=tensors)
    tied = made.graph.initializer.add(name="a2", data_type=FLOAT, dims=[4, 2000])
    onnx.external_data_helper.convert_model_to_external_data(made, location="w.bin", size_threshold=0)
    onnx.save(made, tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    tied = next(t for t in made.graph.initializer if t.name == "a2")
    tied.CopyFrom(next(t for t in made.graph.initializer if t.name == "a"))
    tied.name = "a2"
    save(capture_onnx(hm.write_model(tmp_path, made)), tmp_path / "o.onnx")
    places = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in onnx.load(tmp_path / "o.onnx", load_external_data=False).graph.initializer
    }
    assert places["a"] == places["a2"]
    assert all(int(entries["offset"]) % 4096 == 0 for entries in places.values())
    assert (tmp_path / "o.onnx.data").stat().st_size == 32_768 + WEIGHT[0].nbytes


def test_write_text_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_text(path, "first")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(destination.os, "replace", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_text(path, "second")
    assert contents(tmp_path) == {"report.json": b"first"}
