"""HDF5 as netCDF readers expect it: named dimensions, text in UTF-8."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TEXT = h5py.string_dtype("utf-8")
NAMELESS = "This is a netCDF dimension but not a netCDF variable. {:9}"
"""What netCDF calls a dimension scale that holds no coordinates."""


def create(path: Path) -> h5py.File:
    """A new file that holds no times, so that equal content is equal to the bit, whatever the version of h5py. Raises
    FileExistsError if it is there."""
    made, access = h5py.h5p.create(h5py.h5p.FILE_CREATE), h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    made.set_obj_track_times(False)  # of the root group; those of datasets are off
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_LATEST)
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_EXCL, made, access))


def put(group: h5py.Group, name: str, values: Any, dimensions: Sequence[str], **attributes: Any) -> None:
    """A checksummed dataset with named dimensions; those that are not there yet are made, without coordinates."""
    array = np.asarray(values)
    kind = TEXT if array.dtype.kind in "UO" else array.dtype
    options = {"fletcher32": True} if array.size and kind is not TEXT else {}
    dataset = group.create_dataset(name, data=array.astype(object) if kind is TEXT else array, dtype=kind, **options)
    dataset.attrs.update(attributes)
    for axis, dimension in enumerate(dimensions):
        if dimension == name:  # a coordinate is its own scale
            dataset.make_scale(name)
            continue
        if dimension not in group:
            scale = group.create_dataset(dimension, (array.shape[axis],), "float32")
            scale.make_scale(NAMELESS.format(array.shape[axis]))
        dataset.dims[axis].label = dimension
        dataset.dims[axis].attach_scale(group[dimension])


def texts(dataset: h5py.Dataset) -> list[str]:
    """A dataset of text as strings."""
    return [item.decode() if isinstance(item, bytes) else str(item) for item in dataset[()]]
