"""Id tables: one lookup for a whole step, rows for unseen ids, and what is refused."""

import pytest
import torch

from recsys.model.layers.tables import FeatureTables, ReservedRows, unseen_row_numbers


def tables(**reserved: ReservedRows) -> FeatureTables:
    torch.manual_seed(0)
    return FeatureTables({"item": 7, "user": 5}, 4, 0.5, reserved)


def test_one_lookup_gives_the_same_vectors_and_gradients() -> None:
    items, users = torch.tensor([[3, 3, 0], [6, 1, 3]]), torch.tensor([4, 4])
    weights = torch.randn(2, 3, 4), torch.randn(2, 4)
    found = []
    for at_once in (False, True):
        model = tables()
        ids = {"item": torch.cat([items.flatten(), torch.tensor([2])]), "user": users}
        if at_once:
            with model.one_lookup(ids):
                item, user = model({"item": items})["item"], model({"user": users})["user"]
        else:
            item, user = model({"item": items})["item"], model({"user": users})["user"]
        ((item * weights[0]).sum() + (user * weights[1]).sum()).backward()
        found.append((item, user, model.weight("item").grad, model.weight("user").grad))
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(plain, shared)


def test_one_lookup_asks_for_every_row_once() -> None:
    model, asked = tables(), []
    model.collection.register_forward_pre_hook(lambda _, given: asked.append(given[0].values().tolist()))
    with model.one_lookup({"item": torch.tensor([3, 3, 6, 3])}):
        model({"item": torch.tensor([6, 3, 3])})
    assert asked == [[3, 6]]


def test_one_lookup_refuses_what_it_was_not_told() -> None:
    model = tables()
    with model.one_lookup({"item": torch.tensor([1, 2])}):
        with pytest.raises(RuntimeError, match="not given every id of 'item'"):
            model({"item": torch.tensor([4])})
        with pytest.raises(RuntimeError, match="not given feature 'user'"):
            model({"user": torch.tensor([1])})
    model({"item": torch.tensor([4])})


def test_unseen_ids_are_hashed_alike_everywhere() -> None:
    """The first eight bytes of blake2b("7") are 7 modulo 16, read as a number or as text, in every process."""
    assert unseen_row_numbers(["7", 7, "ada"], 16).tolist() == [7, 7, 5]
    numbers = unseen_row_numbers([f"user-{n}" for n in range(4000)], 8)
    counts = torch.bincount(torch.from_numpy(numbers), minlength=8)
    assert counts.min() > 400  # 500 expected, 21 the standard deviation


def test_training_lends_known_ids_to_reserved_rows_and_evaluation_does_not() -> None:
    model = tables(user=ReservedRows(3, training_share=0.5))
    assert model.weight("user").shape == (8, 4)
    ids = torch.tensor([0, 1, 2, 3, 4]).repeat(200)
    plain = model.eval()({"user": ids})["user"]
    torch.testing.assert_close(plain, model.weight("user")[ids])
    replaced = (model.train()({"user": ids})["user"] != plain).any(1)
    assert not replaced[ids == 0].any()  # "not known" stays what it is
    assert 0.4 < replaced[ids > 0].float().mean() < 0.6
    model({"user": ids})["user"].sum().backward()
    assert (model.weight("user").grad[5:] != 0).any(1).all()


def test_reserved_rows_and_one_lookup_go_together() -> None:
    model = tables(user=ReservedRows(3, training_share=0.5)).train()
    users = torch.tensor([1, 2, 3, 4]).repeat(50)
    with model.one_lookup({"user": users}):
        found = model({"user": users})["user"]
    assert (found[:, None] == model.weight("user")[5:]).all(-1).any(1).any()


def test_reserved_rows_are_refused_where_they_mean_nothing() -> None:
    with pytest.raises(ValueError, match="count >= 1"):
        ReservedRows(0)
    with pytest.raises(ValueError, match="reserved rows for author"):
        tables(author=ReservedRows(2))
