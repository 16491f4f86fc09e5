"""Importing ngopt costs little more than importing torch."""

from tests.interpreters import printed

COMPILER = ["torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd"]


def test_importing_ngopt_does_not_import_the_compiler():
    code = f"""
import sys, torch
before = {{*sys.modules}}
import ngopt
print(*({{*{COMPILER!r}}} & {{*sys.modules}}) - before)
"""
    assert printed(code).split() == []
