"""Data sets, augmentation, simulated prompts: from files or a generator to training batches."""

from __future__ import annotations

from hqsam.data.batch import Batch, Sample, collate
from hqsam.data.feature_store import FeatureStore
from hqsam.data.masks import load_object_mask, load_object_masks
from hqsam.data.opening import data_root, open_dataset
from hqsam.data.options import TrainDataOptions
from hqsam.data.order import epoch_order
from hqsam.data.records import ImageRecord, ObjectRecord, select_records
from hqsam.data.seeding import derive_seed, make_generator
from hqsam.data.sources import ConcatSource, FileSource, SampleSource, SyntheticSource
from hqsam.data.training_set import TrainingSet
from hqsam.data.video_boxes import BoxTrack, read_video_boxes
from hqsam.data.video_opening import open_videos
from hqsam.data.videos import VideoObject, VideoRecord, VideoSet

__all__ = [
    "Batch",
    "BoxTrack",
    "ConcatSource",
    "FeatureStore",
    "FileSource",
    "ImageRecord",
    "ObjectRecord",
    "Sample",
    "SampleSource",
    "SyntheticSource",
    "TrainDataOptions",
    "TrainingSet",
    "VideoObject",
    "VideoRecord",
    "VideoSet",
    "collate",
    "data_root",
    "derive_seed",
    "epoch_order",
    "load_object_mask",
    "load_object_masks",
    "make_generator",
    "open_dataset",
    "open_videos",
    "read_video_boxes",
    "select_records",
]
