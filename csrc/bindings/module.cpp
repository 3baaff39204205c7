// Registers every operation, for each precision and device. No arithmetic and no checks: tightpass/kernels/ checks.
#include "../formulas.h"
#include "../ops.h"
#include "convert.h"

namespace py = pybind11;
using namespace tightpass;

namespace {

template <class T>
AttentionBlocks<T> attention_blocks(const py::dict& given) {
  AttentionBlocks<T> op{};
  op.a = view<const T, 3>(given["a"]);
  op.vo = view<const T, 3>(given["vo"]);
  op.vt = view<const T, 3>(given["vt"]);
  op.rest = view<const T, 3>(given["rest"]);
  op.p = view<const T, 3>(given["p"]);
  op.k = view<const T, 3>(given["k"]);
  op.q = view<const T, 3>(given["q"]);
  op.px = view<const T, 3>(given["px"]);
  op.kx = view<const T, 3>(given["kx"]);
  op.qx = view<const T, 2>(given["qx"]);
  op.x = view<const T, 2>(given["x"]);
  op.r = view<const T, 1>(given["r"]);
  op.columns = view<const Index, 1>(given["columns"]);
  op.diagonal = view<const Index, 1>(given["diagonal"]);
  op.start = view<const Index, 1>(given["start"]);
  op.out = reinterpret_cast<T*>(given["out"].cast<std::uintptr_t>());
  op.block_stride = given["block_stride"].cast<Index>();
  op.row_stride = given["row_stride"].cast<Index>();
  return op;
}

template <class T>
GatherRows<T> gather_rows(const py::dict& given) {
  return {view<const T, 2>(given["weight"]), view<const Index, 1>(given["index"]),
          view<const T, 1>(given["slope"]),  view<const Index, 1>(given["token"]),
          view<const T, 2>(given["x"]),      view<const T, 1>(given["r"]),
          view<T, 2>(given["out"])};
}

template <class T>
Product<T> product(const py::dict& given) {
  return {view<const T, 2>(given["a"]), view<const T, 2>(given["x"]), view<T, 2>(given["out"])};
}

template <class T>
AdjointProduct<T> adjoint_product(const py::dict& given) {
  return {view<const T, 2>(given["a"]), view<const T, 2>(given["y"]), view<T, 2>(given["out"])};
}

template <class T>
BandReduction<T> band_reduction(const py::dict& given) {
  return {view<T, 2>(given["a"]), view<T, 2>(given["band"]), view<T, 2>(given["left"]), view<T, 2>(given["right"]),
          given["width"].cast<Index>()};
}

template <class T>
BulgeChase<T> bulge_chase(const py::dict& given) {
  return {view<T, 2>(given["band"]), view<T, 2>(given["left"]), view<T, 2>(given["right"]), given["n"].cast<Index>(),
          given["width"].cast<Index>()};
}

// d, e, and the check's numbers in a dictionary.
template <class T>
py::dict two_stage(const py::dict& given, int threads) {
  ReductionCheck check{};
  const TwoStage<T> op{view<T, 2>(given["a"]),       view<const T, 2>(given["probes"]), view<double, 1>(given["d"]),
                       view<double, 1>(given["e"]),  view<T, 1>(given["values"]),       &check,
                       given["width"].cast<Index>(), given["in_place"].cast<bool>()};
  {
    const py::gil_scoped_release released;
    cpu::run(op, threads);
  }
  py::dict out;
  out["largest"] = check.largest;
  out["scale"] = check.scale;
  out["energy"] = check.energy;
  out["misfit"] = check.misfit;
  out["right_before"] = check.right_before;
  out["right_after"] = check.right_after;
  out["left_before"] = check.left_before;
  out["left_after"] = check.left_after;
  out["misplaced"] = check.misplaced;
  return out;
}

BlockProduct block_product(const py::dict& given) {
  return {view<const double, 3>(given["blocks"]), view<const Index, 1>(given["rows"]),
          view<const Index, 1>(given["columns"]), view<const double, 2>(given["v"]),
          view<double, 2>(given["high"]),         view<double, 2>(given["low"]),
          given["adjoint"].cast<bool>()};
}

Bisection bisection(const py::dict& given) {
  return {view<const double, 1>(given["d"]), view<const double, 1>(given["e"]), given["absolute"].cast<double>(),
          given["relative"].cast<double>(), view<double, 1>(given["values"])};
}

SturmCounts sturm_counts(const py::dict& given) {
  return {view<const double, 1>(given["d"]), view<const double, 1>(given["e"]), view<const double, 1>(given["taus"]),
          view<Index, 1>(given["counts"])};
}

// One operation on the processor. The lock is released while it runs, since it touches no Python object.
template <class Op>
void add_cpu(py::module_& module, const std::string& name, Op (*convert)(const py::dict&)) {
  module.def(("cpu_" + name).c_str(), [convert](const py::dict& given, int threads) {
    const Op op = convert(given);
    const py::gil_scoped_release released;
    cpu::run(op, threads);
  });
}

// One operation on both devices.
template <class Op>
void add(py::module_& module, const std::string& name, Op (*convert)(const py::dict&)) {
  add_cpu(module, name, convert);
  module.def(("cuda_" + name).c_str(), [convert](const py::dict& given, std::uintptr_t stream, int device) {
    const Op op = convert(given);
    const py::gil_scoped_release released;
    const cuda::OnDevice current(device);
    cuda::run(op, reinterpret_cast<cuda::Stream>(stream));
  });
}

template <class T>
void add_all(py::module_& module, const std::string& dtype) {
  add<AttentionBlocks<T>>(module, "attention_blocks_" + dtype, attention_blocks<T>);
  add<GatherRows<T>>(module, "gather_rows_" + dtype, gather_rows<T>);
  add_cpu<Product<T>>(module, "product_" + dtype, product<T>);
  add_cpu<AdjointProduct<T>>(module, "adjoint_product_" + dtype, adjoint_product<T>);
  add_cpu<BandReduction<T>>(module, "band_reduction_" + dtype, band_reduction<T>);
  module.def(("cpu_two_stage_" + dtype).c_str(), two_stage<T>);
  add<BulgeChase<T>>(module, "bulge_chase_" + dtype, bulge_chase<T>);
}

// What the plain versions in Python have to agree with.
py::dict constants() {
  py::dict out;
  out["narrowest"] = kNarrowest;
  out["widest"] = kWidest;
  out["most_probes"] = kMostProbes;
  out["probes"] = kProbes;
  out["safe"] = kSafe;
  out["absolute"] = kAbsolute;
  out["relative"] = kRelative;
  out["slack"] = kSlack;
  out["least_rest_float32"] = kLeastRest<float>;
  out["least_rest_float64"] = kLeastRest<double>;
  out["over_zero"] = kOverZero;
  out["least_tau"] = kLeastTau;
  out["above"] = kAbove;
  out["spread"] = kSpread;
  out["down"] = kDown;
  return out;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  py::register_exception<Error>(module, "NativeError", PyExc_RuntimeError);
  module.def("cuda_built", cuda::built);
  module.def("instruction_set", cpu::instruction_set);
  module.attr("constants") = constants();
  add_all<float>(module, "float32");
  add_all<double>(module, "float64");
  add_cpu<BlockProduct>(module, "block_product_float64", block_product);
  add<Bisection>(module, "bisection_float64", bisection);
  add<SturmCounts>(module, "sturm_counts_float64", sturm_counts);
}
