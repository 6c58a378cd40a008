// The model's hash: the same for the same model however it lies on disk, another for everything that makes another
// model.
#include "core/model/model_hash.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/model/checkpoint_files.h"

namespace moectl::test {
namespace {

struct Parts {
  std::string config = R"({"hidden_size":4})";
  std::string header =
      R"({"a":{"dtype":"F32","shape":[2,100],"data_offsets":[0,800]},"b":{"dtype":"F32","shape":[1],"data_offsets":[800,804]}})";
  std::string data = std::string(800, 'x') + "bbbb";
};

std::string hash_of(const Parts& parts) {
  TempDir dir;
  dir.write("config.json", parts.config);
  dir.write("model.safetensors", safetensors(parts.header, parts.data));
  return model_hash(Checkpoint::open(dir.path()));
}

TEST(ModelHash, DiffersWithEverythingThatMakesAnotherModel) {
  const Parts base;
  std::set<std::string> hashes{hash_of(base)};
  EXPECT_EQ(hashes.begin()->size(), 32u);
  EXPECT_EQ(hash_of(base), *hashes.begin());
  const auto with = [&](auto change) {
    Parts parts = base;
    change(parts);
    return hash_of(parts);
  };
  const auto replace = [](std::string& text, std::string_view from, std::string_view to) {
    text.replace(text.find(from), from.size(), to);
  };
  hashes.insert(with([&](Parts& p) { p.config = R"({"hidden_size":5})"; }));
  hashes.insert(with([&](Parts& p) { replace(p.header, "[2,100]", "[100,2]"); }));
  hashes.insert(with([&](Parts& p) { replace(p.header, "\"a\"", "\"c\""); }));
  hashes.insert(with([&](Parts& p) { replace(p.header, "F32\",\"shape\":[1]", "I32\",\"shape\":[1]"); }));
  hashes.insert(with([](Parts& p) { p.data[0] ^= 1; }));
  hashes.insert(with([](Parts& p) { p.data[255] ^= 1; }));
  hashes.insert(with([](Parts& p) { p.data[803] ^= 1; }));
  EXPECT_EQ(hashes.size(), 8u);
}

TEST(ModelHash, TheFilesAndTheOrderInThemDoNotMatter) {
  Parts other;
  other.header =
      R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[2,100],"data_offsets":[4,804]}})";
  other.data = "bbbb" + std::string(800, 'x');
  EXPECT_EQ(hash_of(other), hash_of({}));

  TempDir sharded;
  sharded.write("config.json", Parts().config);
  sharded.write("one.safetensors",
                safetensors(R"({"a":{"dtype":"F32","shape":[2,100],"data_offsets":[0,800]}})", std::string(800, 'x')));
  sharded.write("two.safetensors", safetensors(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "bbbb"));
  sharded.write("model.safetensors.index.json", R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  EXPECT_EQ(model_hash(Checkpoint::open(sharded.path())), hash_of({}));
}

TEST(ModelHash, NeedsAConfig) {
  TempDir dir;
  dir.write("model.safetensors", safetensors(Parts().header, Parts().data));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(failure_of([&] { model_hash(checkpoint); }).code, Code::kNotFound);
}

}  // namespace
}  // namespace moectl::test
