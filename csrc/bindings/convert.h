// Arrays as Python hands them over: (address, shape, strides in elements), or None where absent.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "../error.h"
#include "../view.h"

namespace tightpass {

using Array = std::tuple<std::uintptr_t, std::vector<Index>, std::vector<Index>>;

template <class T, int rank>
View<T, rank> view(const pybind11::object& given) {
  View<T, rank> out{};
  if (given.is_none()) return out;
  const auto [address, shape, strides] = given.cast<Array>();
  if (shape.size() != rank || strides.size() != rank)
    throw Error("expected an array of " + std::to_string(rank) + " axes, got " + std::to_string(shape.size()));
  out.data = reinterpret_cast<T*>(address);
  for (int axis = 0; axis < rank; ++axis) {
    out.shape[axis] = shape[axis];
    out.stride[axis] = strides[axis];
  }
  return out;
}

}  // namespace tightpass
