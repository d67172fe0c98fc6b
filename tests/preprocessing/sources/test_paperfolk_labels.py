"""Pictures as arrays: what the recipes of the zoo learn from."""

import numpy as np

from infra.zoo.pictures import LabelledPictures
from preprocessing.sources.paperfolk_canvas import PARTS
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_labels import PATCH, broad, labelled, twice
from preprocessing.sources.paperfolk_world import SCENES, picture_at


def test_labels_are_those_of_the_drawings() -> None:
    pictures = broad(0, 12)
    labels = LabelledPictures(**labelled(pictures, processes=1))
    assert len(labels) == 12 and labels.pixels.shape == (12, 64, 64, 3)
    assert labels.patches.shape == (12, 64 // PATCH, 64 // PATCH, len(PARTS))
    for index, picture in enumerate(pictures):
        drawing = draw(picture)
        assert (labels.pixels[index] == np.asarray(drawing.image)).all()
        assert (labels.instances[index] == drawing.instances).all()
        assert labels.captions[index] == picture.caption
        assert labels.looks[index] == [person.identity.appearance for person in picture.people]
        assert [factors[0] for factors in labels.factors[index]] == [p.identity.word for p in picture.people]
        shares = labels.patches[index].astype(int)
        assert (abs(shares.sum(-1) - 255) <= len(PARTS) / 2).all()  # shares of a patch, each rounded
        assert shares[..., list(SCENES).index(picture.scene)].any()


def test_the_world_grows_at_its_end() -> None:
    assert broad(1, 9)[:4] == broad(1, 4) == [picture_at(1, index) for index in range(4)]
    assert twice(3, 5)[:4] == twice(3, 2)


def test_pairs_show_the_same_person_twice() -> None:
    pictures = twice(3, 20)
    assert len(pictures) == 40
    for first, second in zip(pictures[::2], pictures[1::2], strict=True):
        assert first.people[0].identity == second.people[0].identity and first != second
    assert len({picture.people[0].identity for picture in pictures}) == 20
