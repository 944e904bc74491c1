"""The shipped pictures."""

from alignkit_emoji.pictures import PROMPT_GROUPS, SETS, load_concepts, load_pictures


def test_every_concept_is_drawn_once_by_each_set():
    pictures = load_pictures()
    assert pictures.image_NCHW.shape == (1144, 3, 32, 32)
    assert pictures.sets == SETS * 286
    by_set = {name: pictures.concepts[i :: len(SETS)] for i, name in enumerate(SETS)}
    assert set(by_set.values()) == {load_concepts()}
    assert len(set(load_concepts())) == 286


def test_the_four_drawings_of_a_concept_differ():
    image_MSCHW = load_pictures().image_NCHW.float().unflatten(0, (-1, len(SETS)))
    for i in range(len(SETS)):
        for j in range(i):
            assert (image_MSCHW[:, i] - image_MSCHW[:, j]).abs().mean((1, 2, 3)).min() > 1


def test_pictures_stand_on_white():
    """Most corners are free; drawings that fill the square exist, but are few."""
    image_NCHW = load_pictures().image_NCHW
    corner_N4C = image_NCHW[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].transpose(1, 2)
    assert (corner_N4C == 255).all(2).float().mean() > 0.9


def test_groups_choose_concepts():
    assert len(load_concepts(())) == 997
    assert set(load_concepts()) == {name for group in PROMPT_GROUPS for name in load_concepts([group])}
