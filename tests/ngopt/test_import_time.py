"""Importing ngopt costs little more than importing torch."""

import pytest

from tests.interpreters import printed

COMPILER = ["torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd"]


@pytest.mark.parametrize("module", COMPILER)
def test_importing_ngopt_does_not_import_the_compiler(module):
    code = f"""
import sys, torch
before = {module!r} in sys.modules
import ngopt
print(before, {module!r} in sys.modules)
"""
    before, after = printed(code).split()
    assert after == before
