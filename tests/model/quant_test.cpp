// quantization_config and the tensors of each scheme: what is read, that its numbers arrive, and what is refused.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "core/model/config_readers.h"
#include "core/model/quant_tensors.h"
#include "tests/harness/quantized.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using nlohmann::json;
using test::QuantMatrix;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

QuantConfig read(const json& quantization_config) {
  const json config = {{"quantization_config", quantization_config}};
  return read_quant(Fields(config, "config.json"));
}

json compressed(const char* format, json weights, json more = json::object()) {
  json q = {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}},
            {"ignore", {"lm_head", "re:.*mlp.gate$"}}};
  q.update(more);
  return q;
}
const json kInt4 = {{"num_bits", 4},    {"type", "int"},    {"symmetric", true},  {"strategy", "group"},
                    {"group_size", 32}, {"dynamic", false}, {"actorder", nullptr}};
json int4(const json& changes) {
  json w = kInt4;
  w.update(changes);
  return w;
}

TEST(QuantConfig, OfEachScheme) {
  EXPECT_EQ(read(nullptr), QuantConfig{});
  const QuantConfig fp8 = {.scheme = "fp8", .form = QuantForm::kScaled, .dtype = DType::kF8E4M3};
  EXPECT_EQ(read({{"quant_method", "fp8"}, {"activation_scheme", "static"}, {"ignored_layers", {"lm_head"}}}), fp8);
  QuantConfig block = fp8;
  block.block_n = 128;
  block.block_k = 64;
  EXPECT_EQ(read({{"quant_method", "fp8"}, {"weight_block_size", {128, 64}}, {"scale_fmt", "ue8m0"}}), block);
  EXPECT_EQ(read({{"quant_method", "mxfp4"}, {"modules_to_not_convert", {"lm_head"}}}),
            (QuantConfig{"mxfp4", QuantForm::kBlocks, DType::kF4E2M1, 1, 32}));
  EXPECT_EQ(read({{"quant_method", "awq"}, {"bits", 4}, {"group_size", 64}, {"zero_point", true}, {"version", "gemm"}}),
            (QuantConfig{"awq", QuantForm::kAwq, DType::kU4, 1, 64, NibbleOrder::kAwq}));
  EXPECT_EQ(read({{"quant_method", "awq"}, {"bits", 4}, {"group_size", -1}}),
            (QuantConfig{"awq", QuantForm::kAwq, DType::kU4, 1, 0, NibbleOrder::kAwq}));
}

TEST(QuantConfig, OfCompressedTensors) {
  const std::string pack = "compressed-tensors pack-quantized";
  EXPECT_EQ(read(compressed("pack-quantized", kInt4)), (QuantConfig{pack, QuantForm::kPacked, DType::kI4, 1, 32}));
  EXPECT_EQ(read(compressed("pack-quantized", int4({{"symmetric", false}, {"group_size", 128}}))),
            (QuantConfig{pack, QuantForm::kPacked, DType::kU4, 1, 128}));
  EXPECT_EQ(read(compressed("pack-quantized", int4({{"strategy", "channel"}, {"group_size", nullptr}}))),
            (QuantConfig{pack, QuantForm::kPacked, DType::kI4, 1, 0}));
  EXPECT_EQ(read(compressed("pack-quantized", int4({{"num_bits", 8}, {"actorder", "static"}}))),
            (QuantConfig{pack, QuantForm::kPacked, DType::kU8, 1, 32}));
  const json fp8 = {{"num_bits", 8}, {"type", "float"}, {"symmetric", true}, {"strategy", "channel"}};
  EXPECT_EQ(read(compressed("float-quantized", fp8)),
            (QuantConfig{"compressed-tensors float-quantized", QuantForm::kScaled, DType::kF8E4M3, 1, 0}));
  json block = fp8;
  block.update({{"strategy", "block"}, {"block_structure", {128, 128}}});
  EXPECT_EQ(read(compressed("naive-quantized", block)),
            (QuantConfig{"compressed-tensors naive-quantized", QuantForm::kScaled, DType::kF8E4M3, 128, 128}));
  EXPECT_EQ(read(compressed("int-quantized", {{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}})),
            (QuantConfig{"compressed-tensors int-quantized", QuantForm::kScaled, DType::kI8, 1, 0}));
  const json mx = {{"num_bits", 4}, {"type", "float"}, {"strategy", "group"}, {"group_size", 32}};
  EXPECT_EQ(read(compressed("mxfp4-pack-quantized", mx)),
            (QuantConfig{"compressed-tensors mxfp4-pack-quantized", QuantForm::kPacked, DType::kF4E2M1, 1, 32}));
  // A group's own format counts; groups that agree are one.
  json two = compressed("mixed-precision", kInt4);
  two["config_groups"]["group_0"]["format"] = "pack-quantized";
  two["config_groups"]["group_1"] = two["config_groups"]["group_0"];
  two["config_groups"]["group_2"] = {{"targets", {"re:.*self_attn"}}, {"weights", nullptr}};
  EXPECT_EQ(read(two).dtype, DType::kI4);
}

TEST(QuantConfig, RefusesOtherSchemesByName) {
  struct Case {
    json config;
    std::vector<std::string> message;
  };
  json two = compressed("pack-quantized", kInt4);
  two["config_groups"]["group_1"] = {{"targets", {"re:.*down_proj"}}, {"weights", int4({{"group_size", 64}})}};
  json nvfp4 = int4({{"type", "float"}, {"group_size", 16}, {"strategy", "tensor_group"}});
  std::vector<Case> cases = {
      {{{"quant_method", "fp8"}, {"fmt", "e5m2"}}, {"`quantization_config.fmt`", "e5m2"}},
      {{{"quant_method", "awq"}, {"bits", 4}, {"version", "gemv"}}, {"`quantization_config.version`", "gemv"}},
      {{{"quant_method", "awq"}, {"bits", 8}}, {"`quantization_config.bits`", "8"}},
      {{{"quant_method", "awq"}, {"bits", 4}, {"zero_point", false}}, {"`quantization_config.zero_point`"}},
      {{{"quant_method", "awq"}, {"bits", 4}, {"group_size", 0}}, {"`quantization_config.group_size`"}},
      {compressed("nvfp4-pack-quantized", nvfp4), {"nvfp4-pack-quantized with symmetric 4-bit float"}},
      {compressed("marlin-24", kInt4), {"marlin-24"}},
      {compressed("pack-quantized", int4({{"num_bits", 3}})), {"num_bits", "3-bit int"}},
      {compressed("pack-quantized", int4({{"num_bits", 8}, {"symmetric", false}})), {"asymmetric 8-bit int"}},
      {compressed("pack-quantized", int4({{"actorder", "group"}})), {"actorder", "weight_g_idx"}},
      {compressed("pack-quantized", int4({{"group_size", -1}})), {"group_size", "-1"}},
      {compressed("pack-quantized", int4({{"strategy", "token"}})), {"strategy", "token"}},
      {compressed("pack-quantized", kInt4, {{"quantization_status", "calibration"}}),
       {"quantization_status", "calibration"}},
      {compressed("pack-quantized", kInt4, {{"sparsity_config", {{"format", "sparse-24-bitmask"}}}}),
       {"sparsity_config.format", "sparse-24-bitmask"}},
      {compressed("pack-quantized", kInt4, {{"transform_config", {{"config_groups", 1}}}}), {"transform_config"}},
      {compressed("pack-quantized", kInt4, {{"config_groups", json::array()}}), {"config_groups"}},
      {compressed("pack-quantized", kInt4, {{"config_groups", {{"g", {{"weights", nullptr}}}}}}), {"weights"}},
      {two, {"config_groups", "several formats"}},
  };
  for (const char* method : {"gptq", "bitsandbytes", "modelopt", "quark", "torchao", "hqq", "fbgemm_fp8", "exl2"})
    cases.push_back({{{"quant_method", method}}, {"`quantization_config.quant_method`", method, "\"awq\"", "mxfp4"}});
  for (const Case& c : cases) {
    SCOPED_TRACE(c.config.dump());
    const test::Failure f = test::failure_of([&] { read(c.config); });
    EXPECT_EQ(f.code, Code::kBadData);
    EXPECT_THAT(f.message, HasSubstr("config.json"));
    for (const std::string& part : c.message) EXPECT_THAT(f.message, HasSubstr(part));
  }
}

// ModelOpt says so in a file of its own.
TEST(QuantConfig, RefusesModelOpt) {
  test::TempDir dir;
  const json config = json::object();
  const Fields fields(config, (dir.path() / "config.json").string());
  EXPECT_EQ(read_quant(fields), QuantConfig{});
  dir.write("hf_quant_config.json", R"({"quantization": {"quant_algo": "NVFP4"}})");
  const test::Failure f = test::failure_of([&] { read_quant(fields); });
  EXPECT_EQ(f.code, Code::kBadData);
  EXPECT_THAT(f.message, AllOf(HasSubstr("ModelOpt"), HasSubstr("mxfp4")));
}

// ------------------------------------------------------------------------------------------------ tensors

struct File {
  std::string header, data;

  void add(const std::string& name, const char* dtype, const std::vector<int64_t>& shape, std::string bytes) {
    header += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}", header.empty() ? "{" : ",",
                          json(name).dump(), dtype, json(shape).dump(), data.size(), data.size() + bytes.size());
    data += bytes;
  }
  // The bytes of a QuantMatrix without the odd one in front.
  void add(const std::string& name, const char* dtype, const std::vector<int64_t>& shape,
           const std::vector<std::byte>& bytes) {
    add(name, dtype, shape, std::string(reinterpret_cast<const char*>(bytes.data()) + 1, bytes.size() - 1));
  }
  Checkpoint open(const test::TempDir& dir) const {
    dir.write("model.safetensors", test::safetensors(header + "}", data));
    return Checkpoint::open(dir.path());
  }
};

const TensorSpec kMatrix = {.name = "a.weight", .shape = {48, 96}, .linear = true};

std::string words(std::initializer_list<int64_t> values) {
  std::string s;
  for (int64_t v : values) s.append(reinterpret_cast<const char*>(&v), sizeof v);
  return s;
}

void expect_numbers(const StoredMatrix& stored, const QuantMatrix& m, int64_t row_begin = 0) {
  ASSERT_THAT(stored.missing, IsEmpty());
  ASSERT_THAT(stored.wrong, IsEmpty());
  auto ops = make_ops({});
  const Weight w = ops->pack({&stored.matrix, 1});
  std::vector<float> x(size_t(w.k)), out(size_t(w.n));
  for (int64_t k = 0; k < w.k; ++k) {
    x[size_t(k)] = 1.0f;
    ops->linear({View<const float>(x.data(), {1, w.k}), w, View<float>(out.data(), {1, w.n})}, {});
    x[size_t(k)] = 0.0f;
    for (int64_t n = 0; n < w.n; ++n) ASSERT_EQ(out[size_t(n)], float(m.value(row_begin + n, k))) << n << ", " << k;
  }
}

QuantMatrix matrix(DType dtype, DType scale, int bn, int bk, NibbleOrder order = NibbleOrder::kRows) {
  return test::random_quantized({"", dtype, scale, bn, bk, order}, 48, 96, 1);
}

TEST(QuantTensors, PackQuantized) {
  for (bool symmetric : {true, false}) {
    const QuantMatrix m = matrix(symmetric ? DType::kI4 : DType::kU4, DType::kBF16, 1, 32);
    const QuantConfig q = read(compressed("pack-quantized", int4({{"symmetric", symmetric}})));
    test::TempDir dir;
    File f;
    f.add("a.weight_packed", "I32", {48, 12}, m.bytes);
    f.add("a.weight_scale", "BF16", {48, 3}, m.scale_bytes);
    f.add("a.weight_shape", "I64", {2}, words({48, 96}));
    if (!symmetric) f.add("a.weight_zero_point", "I32", {6, 3}, m.zero_bytes);
    const Checkpoint c = f.open(dir);
    expect_numbers(find_matrix(q, c, kMatrix), m);
    EXPECT_EQ(find_matrix(q, c, kMatrix).tensors.size(), symmetric ? 3u : 4u);
    ASSERT_NE(find_matrix(q, c, kMatrix).shape, nullptr);
  }
}

TEST(QuantTensors, Int8AndMxfp4OfCompressedTensors) {
  {
    const QuantMatrix m = matrix(DType::kU8, DType::kF16, 1, 0);
    test::TempDir dir;
    File f;
    f.add("a.weight_packed", "I32", {48, 24}, m.bytes);
    f.add("a.weight_scale", "F16", {48, 1}, m.scale_bytes);
    expect_numbers(find_matrix(read(compressed("pack-quantized", int4({{"num_bits", 8}, {"strategy", "channel"}}))),
                               f.open(dir), kMatrix),
                   m);
  }
  {
    const QuantMatrix m = matrix(DType::kI8, DType::kF32, 1, 0);
    test::TempDir dir;
    File f;
    f.add("a.weight", "I8", {48, 96}, m.bytes);
    f.add("a.weight_scale", "F32", {48, 1}, m.scale_bytes);
    expect_numbers(find_matrix(read(compressed("int-quantized", {{"num_bits", 8}, {"strategy", "channel"}})),
                               f.open(dir), kMatrix),
                   m);
  }
  const QuantMatrix m = matrix(DType::kF4E2M1, DType::kF8E8M0, 1, 32);
  test::TempDir dir;
  File f;
  f.add("a.weight_packed", "U8", {48, 48}, m.bytes);
  f.add("a.weight_scale", "U8", {48, 3}, m.scale_bytes);
  const json mx = {{"num_bits", 4}, {"type", "float"}, {"strategy", "group"}, {"group_size", 32}};
  expect_numbers(find_matrix(read(compressed("mxfp4-pack-quantized", mx)), f.open(dir), kMatrix), m);
}

TEST(QuantTensors, Awq) {
  const QuantMatrix m = matrix(DType::kU4, DType::kF16, 1, 48, NibbleOrder::kAwq);
  test::TempDir dir;
  File f;
  f.add("a.qweight", "I32", {96, 6}, m.bytes);
  f.add("a.scales", "F16", {2, 48}, m.scale_bytes);
  f.add("a.qzeros", "I32", {2, 6}, m.zero_bytes);
  expect_numbers(find_matrix(read({{"quant_method", "awq"}, {"bits", 4}, {"group_size", 48}}), f.open(dir), kMatrix),
                 m);
}

TEST(QuantTensors, Fp8OfEveryGranularity) {
  struct Case {
    int bn, bk;
    std::vector<int64_t> shape;
    const char* scale;
  };
  for (const Case& c : std::vector<Case>{{0, 0, {}, "weight_scale"},
                                         {0, 0, {1}, "weight_scale_inv"},
                                         {1, 0, {48}, "weight_scale"},
                                         {1, 0, {48, 1}, "weight_scale"}}) {
    const QuantMatrix m = matrix(DType::kF8E4M3, DType::kBF16, c.bn, c.bk);
    test::TempDir dir;
    File f;
    f.add("a.weight", "F8_E4M3", {48, 96}, m.bytes);
    f.add(std::string("a.") + c.scale, "BF16", c.shape, m.scale_bytes);
    f.add("a.input_scale", "F32", {1}, std::string("\0\0\0\0", 4));
    const Checkpoint checkpoint = f.open(dir);
    expect_numbers(find_matrix(read({{"quant_method", "fp8"}}), checkpoint, kMatrix), m);
  }
  const QuantMatrix m = matrix(DType::kF8E4M3, DType::kF32, 32, 64);
  test::TempDir dir;
  File f;
  f.add("a.weight", "F8_E4M3", {48, 96}, m.bytes);
  f.add("a.weight_scale", "F32", {2, 2}, m.scale_bytes);
  json w = {{"num_bits", 8}, {"type", "float"}, {"strategy", "block"}, {"block_structure", {32, 64}}};
  expect_numbers(find_matrix(read(compressed("float-quantized", w)), f.open(dir), kMatrix), m);
}

TEST(QuantTensors, BlocksOfFusedExperts) {
  // Two experts of [24 outputs, 96 inputs]; the model's tensor is [2, inputs, outputs].
  const QuantMatrix m = matrix(DType::kF4E2M1, DType::kF8E8M0, 1, 32);
  const TensorSpec fused = {.name = "e.gate_up_proj", .shape = {2, 96, 24}, .linear = true};
  test::TempDir dir;
  File f;
  f.add("e.gate_up_proj_blocks", "U8", {2, 24, 3, 16}, m.bytes);
  f.add("e.gate_up_proj_scales", "U8", {2, 24, 3}, m.scale_bytes);
  const Checkpoint c = f.open(dir);
  for (int64_t e : {0, 1}) {
    const StoredMatrix stored = find_matrix(read({{"quant_method", "mxfp4"}}), c, fused, e);
    EXPECT_TRUE(stored.flipped);
    expect_numbers(stored, m, 24 * e);
  }
}

TEST(QuantTensors, PlainNumbersBesideQuantizedOnes) {
  test::TempDir dir;
  File f;
  f.add("a.weight", "BF16", {48, 96}, std::string(48 * 96 * 2, '\0'));
  const Checkpoint c = f.open(dir);
  for (const json& q : {json(nullptr), json{{"quant_method", "fp8"}}, compressed("pack-quantized", kInt4)}) {
    const StoredMatrix stored = find_matrix(read(q), c, kMatrix);
    EXPECT_THAT(stored.wrong, IsEmpty());
    EXPECT_EQ(stored.matrix.dtype, DType::kBF16);
    EXPECT_EQ(stored.matrix.scales, nullptr);
  }
}

TEST(QuantTensors, SaysWhatIsMissingOrWrong) {
  const QuantConfig packed = read(compressed("pack-quantized", int4({{"symmetric", false}}))),
                    fp8 = read({{"quant_method", "fp8"}});
  auto with = [](auto&& fill, const QuantConfig& q, const TensorSpec& t = kMatrix) {
    test::TempDir dir;
    File f;
    fill(f);
    const Checkpoint c = f.open(dir);
    return find_matrix(q, c, t);
  };
  auto zeros = [](int64_t n) { return std::string(size_t(n), '\0'); };
  StoredMatrix s = with([&](File& f) { f.add("b", "U8", {1}, zeros(1)); }, packed);
  EXPECT_THAT(s.missing, ElementsAre("a.weight [48, 96]"));
  EXPECT_THAT(s.tensors, IsEmpty());

  s = with([&](File& f) { f.add("a.weight_packed", "I32", {48, 12}, zeros(48 * 12 * 4)); }, packed);
  EXPECT_THAT(s.missing, ElementsAre("a.weight_scale [48, 3]", "a.weight_zero_point [6, 3]"));

  s = with(
      [&](File& f) {
        f.add("a.weight_packed", "I32", {48, 6}, zeros(48 * 6 * 4));
        f.add("a.weight_scale", "I16", {48, 3}, zeros(48 * 3 * 2));
        f.add("a.weight_zero_point", "I32", {48, 3}, zeros(48 * 3 * 4));
        f.add("a.weight_g_idx", "I32", {96}, zeros(96 * 4));
      },
      packed);
  EXPECT_THAT(s.wrong,
              ElementsAre("a.weight_packed has shape [48, 6]; expected [48, 12]",
                          "a.weight_scale has dtype i16; expected bf16, f16 or f32",
                          "a.weight_zero_point has shape [48, 3]; expected [6, 3]", HasSubstr("weight_g_idx")));

  // A group size that does not divide.
  s = with(
      [&](File& f) {
        f.add("a.weight_packed", "I32", {48, 13}, zeros(48 * 13 * 4));
      },
      packed, {.name = "a.weight", .shape = {48, 100}, .linear = true});
  EXPECT_THAT(s.wrong, testing::Contains(AllOf(HasSubstr("a has 100 inputs"), HasSubstr("group_size, 32"))));

  s = with([&](File& f) { f.add("a.weight", "F8_E4M3", {48, 96}, zeros(48 * 96)); }, fp8);
  EXPECT_THAT(s.missing, ElementsAre("a.weight_scale_inv [1]"));
  s = with(
      [&](File& f) {
        f.add("a.weight", "F8_E4M3", {48, 96}, zeros(48 * 96));
        f.add("a.weight_scale", "F32", {2}, zeros(8));
      },
      fp8);
  EXPECT_THAT(s.wrong, ElementsAre("a.weight_scale has shape [2]; expected [1]"));
  s = with([&](File& f) { f.add("a.weight", "F8_E5M2", {48, 96}, zeros(48 * 96)); }, fp8);
  EXPECT_THAT(s.wrong, ElementsAre("a.weight has dtype f8_e5m2; expected f32, bf16, f16 or f8_e4m3"));
  s = with([&](File& f) { f.add("a.weight", "F8_E4M3", {48, 96}, zeros(48 * 96)); }, QuantConfig{});
  EXPECT_THAT(s.wrong, ElementsAre(HasSubstr("config.json has no quantization_config")));

  s = with(
      [&](File& f) {
        f.add("a.weight", "BF16", {48, 96}, zeros(48 * 96 * 2));
        f.add("a.weight_scale", "BF16", {48, 1}, zeros(48 * 2));
      },
      fp8);
  EXPECT_THAT(s.wrong, ElementsAre(HasSubstr("a.weight has dtype bf16 and a scale; expected f8_e4m3")));

  // Embeddings are never quantized.
  s = with(
      [&](File& f) {
        f.add("a.weight_packed", "I32", {48, 12}, zeros(48 * 12 * 4));
      },
      packed, {.name = "a.weight", .shape = {48, 96}});
  EXPECT_THAT(s.missing, ElementsAre("a.weight [48, 96]"));

  const QuantConfig awq = read({{"quant_method", "awq"}, {"bits", 4}});
  s = with(
      [&](File& f) {
        f.add("a.qweight", "I32", {96, 5}, zeros(96 * 5 * 4));
      },
      awq, {.name = "a.weight", .shape = {44, 96}, .linear = true});
  EXPECT_THAT(s.wrong, testing::Contains(HasSubstr("a has 44 outputs; expected a multiple of 8")));
  s = with(
      [&](File& f) {
        f.add("e_blocks", "U8", {2, 24, 3, 16}, zeros(2 * 24 * 3 * 16));
      },
      read({{"quant_method", "mxfp4"}}), {.name = "e", .shape = {2, 80, 24}, .linear = true});
  EXPECT_THAT(s.wrong, testing::Contains(HasSubstr("e has 80 inputs; expected a multiple of 32")));
}

}  // namespace
}  // namespace moectl
