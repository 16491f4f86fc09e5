"""Importing ngopt costs little more than importing torch."""

import subprocess
import sys

import pytest

COMPILER = ["torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd"]


@pytest.mark.parametrize("module", COMPILER)
def test_importing_ngopt_does_not_import_the_compiler(module):
    code = f"""
import sys, torch
before = {module!r} in sys.modules
import ngopt
print(before, {module!r} in sys.modules)
"""
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = output.split()
    assert after == before
