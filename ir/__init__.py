"""The intermediate representation and its analyses: programs, files, values, evidence. Imports none of our rooms."""
