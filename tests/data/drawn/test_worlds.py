"""Drawn worlds: every combination once, in one split, with captions in two languages."""

from collections import Counter

import pytest

from mmret_tf.data.drawn.worlds import (
    ARTICLES,
    COMBINATIONS,
    INTERESTS,
    WorldItem,
    draw_worlds,
    split_of,
)

SPLITS = ("train", "dev", "test")
USES = ("shop", "news", "medicine", "education", "users")


def of_world(world, split="test", seed=0):
    return [item for item in draw_worlds(split, seed=seed) if item.attributes["world"] == world]


def test_worlds_stay_as_they_are():
    # In every process, on every machine and in every release of Python.
    sock = ("sock", "purple", "stripes", "green")
    assert draw_worlds("dev", size=9, seed=0)[2] == WorldItem(
        "shop-0-0559",
        (
            "a purple sock, green stripes",
            "green stripes, sock in purple",
            "紫色的袜子，绿色条纹",
            "绿色条纹袜子，紫色",
        ),
        {
            "world": "shop",
            "options": [*sock],
            "kind": "sock",
            "colour": "purple",
            "pattern": "stripes",
            "second": "green",
            "price": 17,
            "stock": 4,
        },
        (("shop", sock),),
    )
    assert draw_worlds("test", size=9, seed=1)[-1] == WorldItem(
        "users-1-0032",
        ("now a hat, now a kite", "晒帽子，也晒风筝"),
        {"world": "users", "options": ["hat", "kite"], "interests": ["hat", "kite"]},
        (
            ("shop", ("hat", "red", "stripes", "green")),
            ("news", ("two", "kite", "desert", "lightning", "night")),
        ),
    )


def test_every_combination_is_in_one_split_and_all_worlds_are_in_the_test():
    drawn = [item for split in SPLITS for item in draw_worlds(split)]
    assert len({item.id for item in drawn}) == len(drawn)
    found = Counter((item.attributes["world"], *item.attributes["options"]) for item in drawn)
    assert found == Counter(
        (world, *each) for world in COMBINATIONS for each in COMBINATIONS[world]
    )
    assert tuple(dict.fromkeys(item.attributes["world"] for item in draw_worlds("test"))) == USES
    for split, share in zip(SPLITS, (0.70, 0.05, 0.25), strict=True):
        drawn = [item for item in draw_worlds(split) if item.attributes["world"] != "users"]
        assert {item.attributes["world"] for item in drawn} == set(USES[:-1])
        assert abs(len(drawn) / 1864 - share) < 0.03


def test_a_kind_of_goods_with_its_pattern_is_in_one_split_in_all_its_colours():
    goods = COMBINATIONS["shop"]
    assert all(colour != second for _, colour, _, second in goods)
    groups = Counter((kind, pattern, second) for kind, _, pattern, second in goods)
    assert {(pattern == "plain", count) for (_, pattern, _), count in groups.items()} == {
        (True, 8),
        (False, 7),
    }
    splits = {
        (kind, *pattern, split_of("shop", (kind, colour, *pattern)))
        for kind, colour, *pattern in goods
    }
    assert len(splits) == len(groups) == 6 * 17


def test_another_seed_draws_the_same_combinations_anew():
    for one, other in zip(draw_worlds("test", seed=0), draw_worlds("test", seed=1), strict=True):
        assert one.id != other.id and one.captions == other.captions
        assert one.attributes["options"] == other.attributes["options"]
    [one], [other] = (draw_worlds("dev", 1, seed) for seed in (0, 0))
    assert one == other and one.encode() == other.encode()
    goods, twins = (of_world("shop", "dev", seed) for seed in (0, 1))
    assert all(a.encode() != b.encode() for a, b in zip(goods, twins, strict=True))
    assert goods != twins


def test_a_size_chooses_some_of_all_worlds():
    some, whole = draw_worlds("test", 200), draw_worlds("test")
    assert [item for item in whole if item in some] == some and len(some) == 200
    assert {item.attributes["world"] for item in some} == set(USES)
    assert draw_worlds("test", len(whole) + 1) == whole


def test_captions_are_in_two_languages_and_tell_all_combinations_apart():
    for world in USES[:-1]:
        drawn = [item.captions for split in ("train", "dev") for item in of_world(world, split)]
        assert {len(captions) for captions in drawn} == {4}
        for captions in zip(*drawn, strict=True):
            assert len(set(captions)) == len(drawn)
        assert all(caption.isascii() for captions in drawn for caption in captions[:2])
        chinese = "".join(caption for captions in drawn for caption in captions[2:])
        assert not any(map(str.isascii, chinese))
    orange = next(item for item in of_world("shop") if item.attributes["colour"] == "orange")
    assert orange.captions[0].startswith("an orange ")


def test_goods_have_what_no_picture_shows():
    for item in of_world("shop"):
        known = item.attributes
        assert known["options"] == [known[name] for name in ("kind", "colour", "pattern", "second")]
        assert 5 <= known["price"] <= 59 and 0 <= known["stock"] <= 4


def test_the_archive_of_the_news_is_incomplete():
    articles = of_world("news")
    counts = Counter(item.attributes["kind"] for item in articles)
    assert set(counts) == {kind for kind, _ in ARTICLES}
    assert max(counts.values()) - min(counts.values()) <= 1
    for item in articles:
        known = item.attributes
        assert len(item.draw()) == len(item.pictures) == dict(ARTICLES)[known["kind"]]
        assert known["illustrated"] == bool(item.pictures)
        assert len(item.captions) == (0 if known["kind"] == "no text" else 2)
        english, chinese = known["headlines"]
        assert english.isascii() and not any(map(str.isascii, chinese))
        assert not {english, chinese} & set(item.captions)
    assert all("kind" not in item.attributes for item in of_world("news", "train"))


def test_users_post_what_interests_them():
    users = of_world("users")
    assert len(users) == 10 + 10 * 9 / 2
    for user in users:
        interests = user.attributes["interests"]
        assert len(user.captions) == 2 and all(each in user.captions[0] for each in interests)
        assert 1 <= len(user.pictures) <= 4
        shown = [set(options) & set(INTERESTS) for _, options in user.pictures]
        assert set.union(*shown) == set(interests) and all(len(each) == 1 for each in shown)
        assert all(split_of(world, options) == "test" for world, options in user.pictures)
    assert not of_world("users", "train") and not of_world("users", "dev")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "all"}, "split must be one of train, dev, test; got 'all'"),
        ({"size": 0}, "size must be a whole number, at least 1; got 0"),
        ({"seed": -1}, "seed must be an integer from 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_worlds(**arguments)
