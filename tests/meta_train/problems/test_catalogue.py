"""The lists of problems."""

from itertools import chain, combinations

from meta_train.problems import LISTS, PROBLEMS, load_problem


def test_problems_have_their_names():
    assert [load_problem(name).name for name in PROBLEMS] == list(PROBLEMS)


def test_lists_have_no_problem_in_common():
    names = "development", "meta-validation", "meta-test", "meta-training"
    for first, second in combinations(names, 2):
        assert not set(LISTS[first]) & set(LISTS[second])
    assert set(chain(*LISTS.values())) == set(PROBLEMS)


def test_the_papers_cifar_problem_is_in_no_list_for_choosing():
    held_out = load_problem("c10-32")
    assert LISTS["paper"] == ("fm-16", "c10-32")
    for name in (*LISTS["development"], *LISTS["meta-validation"]):
        same_network = str(load_problem(name).build()) == str(held_out.build())
        assert name != "c10-32"
        assert not same_network
