from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hqsam.data import (
    ConcatSource,
    FeatureStore,
    FileSource,
    ImageRecord,
    ObjectRecord,
    Sample,
    SyntheticSource,
    TrainDataOptions,
    TrainingSet,
    collate,
    make_generator,
    open_dataset,
)
from hqsam.data.sources import RawSample
from hqsam.errors import DataError
from hqsam.types import ImageFeatures, Prompts

S = 64
SIZES = [(40, 50), (70, 30), (33, 33), (128, 90)]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Four images of two sources; the first two have three objects each in a label file."""
    folder, rng, made = tmp_path_factory.mktemp("set"), np.random.default_rng(0), []
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
        labels = np.zeros((height, width), np.uint8)
        labels[5:15, 5:15], labels[16:26, 5:25], labels[5:12, 17:29] = 1, 2, 3
        Image.fromarray(labels).save(folder / f"{number}.png")
        wanted = (1, 2, 3) if number < 2 else (-1,)
        objects = tuple(ObjectRecord(mask=folder / f"{number}.png", label=k) for k in wanted)
        source = "cells" if number < 2 else "birds"
        image = folder / f"{number}.jpg"
        made.append(ImageRecord(key=f"set/{number}.jpg", set_name="set", source=source, image=image, objects=objects))
    return made


def options(**changes: object) -> TrainDataOptions:
    return TrainDataOptions(**{"points_per_mask": 40, **changes})  # type: ignore[arg-type]


def training_set(
    records: list[ImageRecord], seed: int = 0, store: FeatureStore | None = None, **changes: object
) -> TrainingSet:
    return TrainingSet(records, options(**changes), S, seed, store)


def same(one: object, other: object) -> bool:
    """Equality that looks into tensors."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (Sample, Prompts)) and type(one) is type(other):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return one == other


def test_shapes_and_types(records: list[ImageRecord]) -> None:
    data = training_set(records, prompts_per_image=3)
    for index in range(len(data)):
        sample = data[0, index]
        assert sample.key == records[index].key
        assert sample.source == records[index].source
        assert sample.image is not None
        assert sample.image.shape == (3, S, S)
        assert sample.masks.shape == (3, S, S)
        assert sample.image.dtype == sample.masks.dtype == torch.uint8
        assert len(sample.prompts) == 3
        assert sample.loss_candidates.shape == (3, 120, 2)
        assert sample.loss_uniform.shape == (3, 10, 2)
        for points in (sample.loss_candidates, sample.loss_uniform):
            assert points.dtype == torch.float32
            assert points.min() >= 0
            assert points.max() <= 1
        assert all(mask.max() > 128 for mask in sample.masks)
    assert data.sources == ["cells", "cells", "birds", "birds"]


def test_published_number_of_loss_points() -> None:
    plain = TrainDataOptions()
    assert (plain.num_candidates, plain.num_uniform) == (3 * 112 * 112, 112 * 112 // 4)


def test_a_sample_depends_on_seed_epoch_and_image_alone(records: list[ImageRecord]) -> None:
    data = training_set(records)
    assert same(data[3, 1], training_set(records)[3, 1])
    # the same image at another place of other data
    assert same(data[3, 1], training_set(records[1:])[3, 0])
    for other in (data[4, 1], data[3, 1 + len(data)], training_set(records, seed=1)[3, 1]):
        assert not torch.equal(other.loss_uniform, data[3, 1].loss_uniform)
        assert not torch.equal(other.image, data[3, 1].image)


def test_workers_change_nothing(records: list[ImageRecord]) -> None:
    data = training_set(records, prompts_per_image=2, photometric=0.5, degradation=0.5)
    items = [(epoch, index) for epoch in range(2) for index in range(len(data))]
    loading = {"batch_size": 2, "sampler": items, "collate_fn": collate}
    alone, shared = (list(DataLoader(data, num_workers=workers, **loading)) for workers in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
        assert torch.equal(one.prompts.coords, other.prompts.coords)
        assert torch.equal(one.loss_candidates, other.loss_candidates)


def test_views_come_again_and_prompts_do_not(records: list[ImageRecord]) -> None:
    data = training_set(records, views=2)
    first, again, next_view = data[0, 0], data[2, 0], data[1, 0]
    assert first.view_key == again.view_key == data.view_key(0, 0) == data.view_key(2, 0)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.loss_candidates, again.loss_candidates)
    assert next_view.view_key != first.view_key
    assert not torch.equal(next_view.image, first.image)
    # a repetition within the epoch goes to the next view
    assert data.view_key(0, len(data)) == data.view_key(1, 0)
    fresh = training_set(records)
    assert len({fresh.view_key(epoch, index) for epoch in range(3) for index in range(8)}) == 24


def test_changed_pixels_are_of_the_view_and_of_the_image_alone(records: list[ImageRecord]) -> None:
    plain, changed = (training_set(records, views=1, photometric=p, degradation=p) for p in (0.0, 1.0))
    for index in range(len(records)):
        before, after = plain[0, index], changed[0, index]
        assert same(replace(before, image=None), replace(after, image=None))
        assert torch.equal(after.image, changed[3, index].image)
    assert any(not torch.equal(plain[0, k].image, changed[0, k].image) for k in range(len(records)))


def test_a_view_is_the_image_resized_cropped_and_padded(records: list[ImageRecord]) -> None:
    """Pixels and mask against the plain way: mirror, resize as a whole, crop, paste."""
    data = training_set(records)
    for epoch in range(5):
        for index in range(2, len(data)):  # images of one object
            key = records[index].key
            generator = make_generator(0, "view", str(epoch), key)
            generator.integers(1)
            mask = FileSource(records).read(index, 0).masks[0]
            params, _ = data.options.crop_rule().draw_keeping(mask, int((mask > 128).sum()), S, generator)
            sample = data[epoch, index]
            for pixels, got, fill in (
                (Image.open(records[index].image), sample.image.permute(1, 2, 0), (128,) * 3),
                (Image.fromarray(mask), sample.masks[0], 0),
            ):
                source = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if params.flip else pixels
                (height, width), (top, left) = params.resized_hw, params.offset_yx
                whole = source.resize((width, height), Image.Resampling.BILINEAR)
                frame = Image.new(pixels.mode, (S, S), fill)
                frame.paste(whole.crop((left, top, min(left + S, width), min(top + S, height))))
                tolerance = 2 if params.spare_resolution < 2 else 60  # noise, read at a reduced size
                assert np.abs(np.asarray(frame).astype(int) - got.numpy()).max() <= tolerance


def test_padding_of_the_two_kinds(records: list[ImageRecord]) -> None:
    changes = {"jitter": None, "flip_prob": 0.0}
    published, predictor = (training_set(records, pad=pad, **changes)[0, 1] for pad in ("published", "predictor"))
    assert published.input_hw == (S, S)
    assert predictor.input_hw == (S, 27)  # 70 x 30
    assert published.image is not None
    assert predictor.image is not None
    assert (published.image[:, :, 27:] == 128).all()
    assert torch.equal(published.image[:, :, :27], predictor.image[:, :, :27])
    assert not published.masks[:, :, 27:].any()


def test_several_objects_of_a_view_and_several_prompts_of_one(records: list[ImageRecord]) -> None:
    changes = {"prompts_per_image": 3, "jitter": None, "flip_prob": 0.0}
    many = training_set(records, **changes)[0, 0]
    assert len({mask.numpy().tobytes() for mask in many.masks}) == 3
    one = training_set(records, **changes)[0, 2]
    assert torch.equal(one.masks[0], one.masks[1])
    assert torch.equal(one.masks[0], one.masks[2])
    assert not torch.equal(one.loss_uniform[0], one.loss_uniform[1])


def test_image_and_masks_of_a_sample_stay_aligned(tmp_path: Path) -> None:
    """The picture is its own mask, so any misplacement shows."""
    shape = np.zeros((60, 80), np.uint8)
    shape[10:40, 20:60], shape[15:20, 30:50] = 255, 0
    Image.fromarray(np.repeat(shape[..., None], 3, axis=2)).save(tmp_path / "a.bmp")
    Image.fromarray(shape).save(tmp_path / "a.png")
    record = ImageRecord(
        key="k", set_name="s", source="s", image=tmp_path / "a.bmp", objects=(ObjectRecord(mask=tmp_path / "a.png"),)
    )
    data = training_set([record], pad="predictor", prompts_per_image=4)
    for epoch in range(6):
        sample = data[epoch, 0]
        assert sample.image is not None
        height, width = sample.input_hw
        assert torch.equal(sample.image[0, :height, :width], sample.masks.amax(0)[:height, :width])


def test_view_fingerprint_knows_what_views_depend_on(records: list[ImageRecord]) -> None:
    base = training_set(records).view_fingerprint()
    frames = ({"pad": "predictor"}, {"jitter": (0.5, 1.0)}, {"jitter": None}, {"flip_prob": 0.0}, {"min_share": 0.5})
    for changes in (*frames, {"photometric": 0.1}, {"degradation": 0.1}):
        assert training_set(records, **changes).view_fingerprint() != base
    assert training_set(records, seed=1).view_fingerprint() != base
    for changes in ({"mix": {"box": 1.0}}, {"prompts_per_image": 4}, {"points_per_mask": 9}, {"box_jitter": 0.1}):
        assert training_set(records, **changes).view_fingerprint() == base
    assert training_set(records[:2]).view_fingerprint() == base  # a view is of its own image alone


def fake_features(value: float) -> ImageFeatures:
    return ImageFeatures(torch.full((4, 2, 2), value), torch.full((3, 2, 2), -value))


def test_kept_features_replace_the_image_and_change_nothing_else(records: list[ImageRecord], tmp_path: Path) -> None:
    plain = training_set(records, views=1)
    store = FeatureStore(tmp_path, model_fingerprint="m", view_fingerprint=plain.view_fingerprint())
    data = training_set(records, store=store, views=1)
    store.save(data.view_key(0, 2), fake_features(2.0))
    for epoch in range(2):
        kept, seen = data[epoch, 2], plain[epoch, 2]
        assert kept.image is None
        assert kept.features is not None
        assert kept.features.image_embedding.unique().tolist() == [2.0]
        assert same(replace(kept, features=None), replace(seen, image=None))
    assert data[0, 1].features is None
    with pytest.raises(ValueError, match=rf"features of {data.view_key(0, 1)} are missing"):
        collate([data[0, 1], data[0, 2]])
    store.save(data.view_key(0, 1), fake_features(1.0))
    batch = collate([data[0, 1], data[0, 2]])
    assert batch.images is None
    assert batch.features is not None
    assert batch.features.early_feature.shape == (2, 3, 2, 2)
    assert batch.features.early_feature[:, 0, 0, 0].tolist() == [-1, -2]


def test_collate_joins_in_order(records: list[ImageRecord]) -> None:
    data = training_set(records, prompts_per_image=2)
    samples = [data[0, 0], data[0, 3], data[0, 1]]
    batch = collate(samples)
    assert batch.keys == [s.key for s in samples]
    assert batch.sources == [s.source for s in samples]
    assert batch.images is not None
    assert batch.images.shape == (3, 3, S, S)
    assert batch.masks.shape == (6, 1, S, S)
    assert torch.equal(batch.masks[2:4, 0], samples[1].masks)
    assert batch.prompts.image_index is not None
    assert batch.prompts.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.input_hw.tolist() == [list(s.input_hw) for s in samples]
    assert batch.loss_candidates.shape == (6, 120, 2)
    moved = batch.to("meta")
    assert moved.keys == batch.keys
    tensors = (moved.images, moved.masks, moved.input_hw, moved.prompts.coords, moved.loss_uniform)
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def tiny_record(folder: Path, mask: np.ndarray, name: str = "a") -> ImageRecord:
    height, width = mask.shape
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / f"{name}.jpg")
    Image.fromarray(mask).save(folder / f"{name}.png")
    return ImageRecord(
        key=f"s/{name}.jpg",
        set_name="s",
        source="s",
        image=folder / f"{name}.jpg",
        objects=(ObjectRecord(mask=folder / f"{name}.png"),),
    )


@pytest.mark.parametrize("side", [30, 64, 150])
def test_an_object_of_one_pixel_gets_a_box(tmp_path: Path, side: int) -> None:
    mask = np.zeros((side, side), np.uint8)
    mask[side // 2, side // 3] = 255
    for epoch in range(6):
        sample = training_set([tiny_record(tmp_path, mask)])[epoch, 0]
        if (sample.masks > 128).sum() < 10:
            assert sample.prompts.kinds.tolist() == [[2, 3]]
        assert sample.masks.any()


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    sample = training_set([tiny_record(tmp_path, np.array([[255]], np.uint8))])[0, 0]
    assert sample.masks.shape == (1, S, S)
    assert sample.masks.any()


def test_unusable_samples_are_named(tmp_path: Path) -> None:
    empty = tiny_record(tmp_path, np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"s/a\.jpg shows no object"):
        training_set([empty])[0, 0]
    faint = tiny_record(tmp_path, np.full((9, 9), 7, np.uint8), "b")
    with pytest.raises(DataError, match=r"s/b\.jpg shows no object"):
        training_set([faint])[0, 0]
    broken = tiny_record(tmp_path, np.full((9, 9), 255, np.uint8), "c")
    (tmp_path / "c.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"c\.png"):
        training_set([broken])[0, 0]
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"c\.jpg"):
        training_set([broken])[0, 0]


def test_errors_in_workers_keep_their_text(tmp_path: Path) -> None:
    data = training_set([tiny_record(tmp_path, np.zeros((9, 9), np.uint8))])
    with pytest.raises(DataError, match=r"s/a\.jpg shows no object"):
        next(iter(DataLoader(data, batch_size=None, sampler=[(0, 0)], num_workers=1)))


def test_an_image_that_is_truncated(tmp_path: Path) -> None:
    record = tiny_record(tmp_path, np.full((400, 300), 255, np.uint8))
    data = record.image.read_bytes()
    record.image.write_bytes(data[: len(data) // 2])
    for jitter in ((0.1, 0.1), (2.0, 2.0)):  # decoded at a reduced size, and at its own
        with pytest.raises(DataError, match=r"truncated or damaged.*a\.jpg"):
            training_set([record], jitter=jitter)[0, 0]


def test_a_source_of_neither_pixels_nor_files(records: list[ImageRecord]) -> None:
    class Without(SyntheticSource):
        def read(self, index: int, scene_seed: int, *, with_image: bool = True) -> RawSample:
            return super().read(index, scene_seed)._replace(image=None)

    with pytest.raises(ValueError, match="without its image"):
        TrainingSet(Without(1, S), options(), S, 0)[0, 0]


def test_empty_and_doubled_data(records: list[ImageRecord]) -> None:
    with pytest.raises(DataError, match="empty"):
        training_set([])
    with pytest.raises(DataError, match=r"set/0\.jpg occurs twice"):
        training_set([records[0], *records])


def test_generated_scenes_join_files(records: list[ImageRecord]) -> None:
    source = ConcatSource([FileSource(records), SyntheticSource(3, S)])
    data = TrainingSet(source, options(views=2, jitter=None), S, 0)
    assert len(data) == 7
    assert data.sources == ["cells"] * 2 + ["birds"] * 2 + ["synthetic"] * 3
    scene = data[0, 4]
    assert scene.key == "synthetic/000000"
    assert same(scene, data[0, 4])
    assert torch.equal(scene.image, data[2, 4].image)
    others = [data[1, 4], data[0, 5], TrainingSet(source, data.options, S, 1)[0, 4]]
    assert not any(torch.equal(scene.image, other.image) for other in others)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SyntheticSource(0)
    assert SyntheticSource(3, S, kinds=["blob"]).key(0) == "synthetic/blob/000000"
    with pytest.raises(ValueError, match="kinds must be some of"):
        SyntheticSource(3, S, kinds=["cloud"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"prompts_per_image": 0}, "prompts_per_image must be at least 1"),
        ({"views": -1}, "views must be at least 0"),
        ({"points_per_mask": 0}, "points_per_mask"),
        ({"pad": "grey"}, "pad must be"),
        ({"oversample": 0.5}, "oversample"),
        ({"importance": 2.0}, "importance"),
        ({"photometric": 2.0}, "photometric must be within 0..1"),
        ({"degradation": -0.1}, "degradation must be within 0..1"),
        ({"jitter": (3.0, 1.0)}, "jitter"),
        ({"flip_prob": 2.0}, "flip_prob"),
        ({"mix": {"text": 1.0}}, "mix"),
    ],
)
def test_options_out_of_range(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        options(**changes)


def test_research_pack_gives_samples(shared_data: Path) -> None:
    records = open_dataset(shared_data / "train512")
    firsts = [next(r for r in records if r.source == source) for source in sorted({r.source for r in records})]
    data = TrainingSet(firsts, options(prompts_per_image=2), 1024, 0)
    batch = collate([data[0, index] for index in range(len(data))])
    assert batch.masks.shape == (2 * len(firsts), 1, 1024, 1024)
    assert (batch.masks.flatten(1).amax(1) > 128).all()
