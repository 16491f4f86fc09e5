"""The lists of problems."""

from itertools import chain, combinations

from meta_train.problems import (
    DEVELOPMENT,
    LISTS,
    META_TEST,
    META_VALIDATION,
    PAPER,
    PROBLEMS,
    SITUATIONS,
    load_problem,
)


def test_problems_have_their_names():
    assert [load_problem(name).name for name in PROBLEMS] == list(PROBLEMS)


def test_lists_have_no_problem_in_common():
    for first, second in combinations((DEVELOPMENT, META_VALIDATION, META_TEST), 2):
        assert not set(first) & set(second)
    assert set(chain(*LISTS.values())) == {*PROBLEMS, *SITUATIONS}


def test_the_papers_cifar_problem_is_in_no_list_for_choosing():
    held_out = load_problem("c10-32")
    assert PAPER == ("fm-16", "c10-32")
    for name in (*DEVELOPMENT, *META_VALIDATION):
        same_network = str(load_problem(name).build()) == str(held_out.build())
        assert name != "c10-32"
        assert not same_network
