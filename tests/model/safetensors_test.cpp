#include "core/model/safetensors.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using test::failure_of;
using test::safetensors;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kFile = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape, offsets);
}

std::string object(const std::string& entries) {
  return fmt::format("{{{}}}", entries);
}

// Opens a folder with this one file and returns the refusal.
test::Failure refusal(const std::string& content) {
  TempDir dir;
  dir.write(kFile, content);
  return failure_of([&] { Checkpoint::open(dir.path()); });
}

TEST(Safetensors, OpensOneFile) {
  TempDir dir;
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "BF16", "[2,2]", "[4,12]") + "," +
                       entry("a", "F32", "[]", "[0,4]") + "," + entry("empty", "F16", "[0,5]", "[12,12]") + "}   ";
  dir.write(kFile, safetensors(header, "abcd01234567"));
  Checkpoint c = Checkpoint::open(dir.path());
  EXPECT_EQ(c.tensors().size(), 3u);
  EXPECT_EQ(c.total_bytes(), 12);
  const TensorInfo* b = c.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kBF16);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b->data), 8), "01234567");
  EXPECT_EQ(c.find("a")->num_bytes, 4);
  EXPECT_TRUE(c.find("a")->shape.empty());
  EXPECT_EQ(c.find("empty")->num_bytes, 0);
  EXPECT_EQ(c.find("nothing"), nullptr);
}

TEST(Safetensors, GetChecksShapeAndNamesBoth) {
  TempDir dir;
  dir.write(kFile, safetensors(object(entry("w", "U8", "[2,3]", "[0,6]")), "abcdef"));
  Checkpoint c = Checkpoint::open(dir.path());
  EXPECT_EQ(&c.get("w", std::array<int64_t, 2>{2, 3}), c.find("w"));
  EXPECT_EQ(&c.get("w", std::array<int64_t, 2>{-1, 3}), c.find("w"));
  for (auto shape : {std::vector<int64_t>{3, 2}, {2}, {2, 3, 1}, {-1, 4}}) {
    test::Failure f = failure_of([&] { c.get("w", shape); });
    EXPECT_EQ(f.code, Code::kBadData);
    EXPECT_THAT(f.message, AllOf(HasSubstr("`w`"), HasSubstr("[2, 3]"), HasSubstr(kFile)));
  }
  test::Failure f = failure_of([&] { c.get("lm_head.weight", std::array<int64_t, 2>{5, -1}); });
  EXPECT_EQ(f.code, Code::kBadData);
  EXPECT_THAT(f.message, AllOf(HasSubstr("lm_head.weight"), HasSubstr("missing"), HasSubstr("[5, any]")));
}

TEST(Safetensors, MissingFolderOrFiles) {
  TempDir dir;
  EXPECT_EQ(failure_of([&] { Checkpoint::open(dir.path() / "nowhere"); }).code, Code::kNotFound);
  test::Failure none = failure_of([&] { Checkpoint::open(dir.path()); });
  EXPECT_EQ(none.code, Code::kNotFound);
  EXPECT_THAT(none.message, HasSubstr("model.safetensors"));
  dir.write("file", "x");
  EXPECT_THAT(failure_of([&] { Checkpoint::open(dir.path() / "file"); }).message, HasSubstr("not a folder"));
}

TEST(Safetensors, NotARegularFile) {
  for (bool fifo : {false, true}) {  // a FIFO must not hang the load
    TempDir dir;
    if (fifo)
      ASSERT_EQ(::mkfifo((dir.path() / kFile).c_str(), 0600), 0);
    else
      std::filesystem::create_directory(dir.path() / kFile);
    test::Failure f = failure_of([&] { Checkpoint::open(dir.path()); });
    EXPECT_EQ(f.code, Code::kBadData);
    EXPECT_THAT(f.message, AllOf(HasSubstr(kFile), HasSubstr("regular file")));
  }
}

struct BadFile {
  const char* what;
  std::string content;
  std::vector<std::string> message;  // parts of it
};

std::vector<BadFile> bad_files() {
  const std::string w = entry("w", "F32", "[2]", "[0,8]"), data8 = "12345678";
  auto one = [&](const std::string& e, const std::string& data = "12345678") { return safetensors(object(e), data); };
  std::string deep = std::string(5000, '[') + std::string(5000, ']');
  std::string lists, names;  // a member of many values
  for (int i = 0; i <= 100'000; ++i) lists += "[],", names += fmt::format("\"{}\":\"\",", i);
  std::string deep_objects;
  for (int i = 0; i < 100; ++i) deep_objects += "{\"a\":";
  deep_objects += '1';
  deep_objects.append(100, '}');
  return {
      {"empty file", "", {"is empty"}},
      {"seven bytes", "1234567", {"7 bytes"}},
      {"huge header length", safetensors("{}", "", ~uint64_t{0}), {"18446744073709551615", "at most"}},
      {"header length 2^63", safetensors("{}", "", uint64_t{1} << 63), {"at most"}},
      {"header length over the limit", safetensors("{}", "", 100'000'001), {"100000001", "at most"}},
      {"header longer than the file", safetensors("{}", "", 99'000'000), {"truncated"}},
      {"header one byte longer than the file", safetensors("{}", "", 3), {"truncated"}},
      {"zero header length", safetensors("", "{}"), {"header", "not valid JSON"}},
      {"header not JSON", safetensors("hello world"), {"header", "not valid JSON"}},
      {"header cut", safetensors("{\"w\":{\"dtype\":\"F3"), {"not valid JSON"}},
      {"bytes behind the header's object", safetensors("{} {}"), {"not valid JSON"}},
      {"header not UTF-8", safetensors("{\"\xff\":1}"), {"not valid JSON"}},
      {"header a list", safetensors("[1]"), {"expected an object"}},
      {"deep lists", safetensors(deep), {"header"}},
      {"deep objects", safetensors(deep_objects), {"header"}},
      {"entry not an object", one("\"w\":3"), {"\"w\"", "expected an object"}},
      {"no dtype", one("\"w\":{\"shape\":[2],\"data_offsets\":[0,8]}"), {"\"w\"", "`dtype`"}},
      {"no shape", one("\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}"), {"\"w\"", "`shape`"}},
      {"no offsets", one("\"w\":{\"dtype\":\"F32\",\"shape\":[2]}"), {"\"w\"", "`data_offsets`"}},
      {"unknown dtype", one(entry("w", "F64", "[1]", "[0,8]")), {"\"w\"", "F64", "supported are"}},
      {"dtype a number", one("\"w\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}"), {"\"w\"", "dtype 7"}},
      {"negative size", one(entry("w", "F32", "[-2]", "[0,8]")), {"\"w\"", "[-2]"}},
      {"fractional size", one(entry("w", "F32", "[2.0]", "[0,8]")), {"\"w\"", "[2.0]"}},
      {"size a string", one(entry("w", "F32", "[\"2\"]", "[0,8]")), {"\"w\"", "every size"}},
      {"size over 2^63", one(entry("w", "F32", "[18446744073709551615]", "[0,8]")), {"\"w\"", "every size"}},
      {"size over 2^64", one(entry("w", "F32", "[36893488147419103234]", "[0,8]")), {"\"w\"", "every size"}},
      {"size beyond a double", one(entry("w", "F32", "[1e999]", "[0,8]")), {"not valid JSON"}},
      {"shape a number", one(entry("w", "F32", "2", "[0,8]")), {"\"w\"", "list"}},
      {"nine dimensions", one(entry("w", "F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]")), {"\"w\"", "at most 8"}},
      {"overflowing shape", one(entry("w", "F32", "[4611686018427387904,4,2]", "[0,8]")), {"\"w\"", "overflows"}},
      {"overflow that wraps to the right size",
       one(entry("w", "F32", "[4611686018427387906]", "[0,8]")),
       {"\"w\"", "overflows"}},
      {"reversed offsets", one(entry("w", "F32", "[2]", "[8,0]")), {"\"w\"", "reversed"}},
      {"offsets beyond the file", one(entry("w", "F32", "[4]", "[0,16]")), {"\"w\"", "truncated"}},
      {"offsets far beyond",
       one(entry("w", "U8", "[9223372036854775807]", "[0,9223372036854775807]")),
       {"\"w\"", "truncated"}},
      {"three offsets", one(entry("w", "F32", "[2]", "[0,8,9]")), {"\"w\"", "two integers"}},
      {"fractional offset", one(entry("w", "F32", "[2]", "[0,8.5]")), {"\"w\"", "two integers"}},
      {"negative offset", one(entry("w", "F32", "[2]", "[-8,0]")), {"\"w\"", "two integers"}},
      {"range too short", one(entry("w", "F32", "[2]", "[0,4]")), {"\"w\"", "need 8"}},
      {"range too long", one(entry("w", "F32", "[1]", "[0,8]")), {"\"w\"", "need 4"}},
      {"zero size with bytes", one(entry("w", "F32", "[0]", "[0,8]")), {"\"w\"", "need 0"}},
      {"overlap", one(w + "," + entry("v", "F32", "[1]", "[4,8]")), {"`v`", "overlaps"}},
      {"the same range twice", one(w + "," + entry("v", "F32", "[2]", "[0,8]")), {"overlaps"}},
      {"gap before", one(entry("w", "F32", "[1]", "[4,8]")), {"`w`", "belong to no tensor"}},
      {"gap between",
       one(entry("w", "F32", "[1]", "[0,4]") + "," + entry("v", "U8", "[1]", "[7,8]")),
       {"`v`", "belong to no tensor"}},
      {"bytes at the end", one(w, "123456789"), {"at its end"}},
      {"data without tensors", safetensors("{}", "abc"), {"at its end"}},
      {"name twice", one(w + "," + w), {"\"w\"", "twice"}},
      {"name twice, once escaped", one(w + "," + entry("\\u0077", "U8", "[0]", "[8,8]")), {"\"w\"", "twice"}},
      {"metadata twice", one("\"__metadata__\":{},\"__metadata__\":{}"), {"__metadata__", "twice"}},
      {"name twice in metadata", one("\"__metadata__\":{\"a\":\"\",\"a\":\"\"}," + w), {"\"a\"", "twice"}},
      {"name twice inside metadata", one("\"__metadata__\":{\"b\":[{\"a\":1,\"a\":1}]}," + w), {"\"a\"", "twice"}},
      {"a long list", one("\"w\":[" + lists + "[]]"), {"more than 100000 values"}},
      {"much metadata", one("\"__metadata__\":{" + names + "\"x\":\"\"}," + w), {"more than 100000 values"}},
      {"a header of lists", safetensors("[" + lists + "[]]"), {"header is a list", "expected an object"}},
      {"a header of text", safetensors("\"x\""), {"header is \"x\"", "expected an object"}},
      {"field twice",
       one("\"w\":{\"dtype\":\"F32\",\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}"),
       {"\"dtype\"", "twice"}},
      {"one data byte missing", one(w, "1234567"), {"\"w\"", "truncated"}},
  };
}

TEST(Safetensors, RefusesDamagedFiles) {
  for (const BadFile& bad : bad_files()) {
    SCOPED_TRACE(bad.what);
    test::Failure f = refusal(bad.content);
    EXPECT_EQ(f.code, Code::kBadData);
    EXPECT_THAT(f.message, HasSubstr(kFile));
    for (const std::string& part : bad.message) EXPECT_THAT(f.message, HasSubstr(part));
  }
}

// Names of inner objects may repeat those of others, and what is not `dtype`, `shape` or `data_offsets` changes
// nothing.
TEST(Safetensors, ReadsMembersOneByOne) {
  std::string header = "{\"__metadata__\":{\"dtype\":\"x\",\"a\":{\"dtype\":[[],{}]}}";
  for (int i = 0; i < 1000; ++i)
    header += "," + entry(fmt::format("t{}", i), "U8", "[1]", fmt::format("[{},{}]", i, i + 1));
  header += R"(,"last":{"more":{"dtype":"F32"},"shape":[0,3],"data_offsets":[1000,1000],"dtype":"BF16"}})";
  TempDir dir;
  std::string data;
  for (int i = 0; i < 1000; ++i) data += char('a' + i % 26);
  dir.write(kFile, safetensors(header, data));
  const Checkpoint c = Checkpoint::open(dir.path());
  EXPECT_EQ(c.tensors().size(), 1001u);
  EXPECT_EQ(c.total_bytes(), 1000);
  EXPECT_EQ(std::to_integer<char>(c.find("t27")->data[0]), 'b');
  EXPECT_EQ(c.find("last")->dtype, DType::kBF16);
}

TEST(Safetensors, LongNamesAreCutInMessages) {
  test::Failure f = refusal(safetensors(object(entry(std::string(100'000, 'n'), "F64", "[1]", "[0,8]")), "12345678"));
  EXPECT_LT(f.message.size(), 1000u);
}

const std::string kOne = safetensors(object(entry("a", "U8", "[2]", "[0,2]")), "ab");
const std::string kTwo = safetensors(object(entry("b", "U8", "[3]", "[0,3]")), "cde");

const std::string kBoth =
    safetensors(object(entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[3]", "[2,5]")), "abcde");

TEST(Safetensors, OpensShards) {
  TempDir dir;
  dir.write("one.safetensors", kOne);
  dir.write("two.safetensors", kTwo);
  dir.write(kIndex, R"({"metadata":{"total_size":5},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  Checkpoint c = Checkpoint::open(dir.path());
  EXPECT_EQ(c.tensors().size(), 2u);
  EXPECT_EQ(c.total_bytes(), 5);
  EXPECT_EQ(std::filesystem::path(c.find("b")->file).filename(), "two.safetensors");
  Checkpoint moved = std::move(c);
  EXPECT_EQ(std::to_integer<char>(moved.find("b")->data[2]), 'e');
}

// The hub's cache: every file of the folder is a link to a blob elsewhere.
TEST(Safetensors, FollowsSymbolicLinksOfTheCache) {
  TempDir blobs, dir;
  blobs.write("0123abcd", kOne);
  std::filesystem::create_symlink(blobs.path() / "0123abcd", dir.path() / kFile);
  EXPECT_EQ(Checkpoint::open(dir.path()).tensors().size(), 1u);
}

TEST(Safetensors, RefusesBadIndexes) {
  struct Case {
    const char* index;
    std::vector<std::string> message;
  };
  const std::string deep = "{\"weight_map\":" + std::string(3000, '[') + std::string(3000, ']') + "}";
  for (const Case& c : std::vector<Case>{
           {"", {"not valid JSON"}},
           {"[]", {"weight_map"}},
           {"{}", {"weight_map"}},
           {R"({"weight_map":{}})", {"weight_map"}},
           {R"({"weight_map":["one.safetensors"]})", {"weight_map"}},
           {deep.c_str(), {"index.json"}},
           {R"({"weight_map":{"a":1}})", {"\"a\"", "file name"}},
           {R"({"weight_map":{"a":""}})", {"\"a\"", "plain name"}},
           {R"({"weight_map":{"a":"../one.safetensors"}})", {"\"a\"", "../one", "plain name"}},
           {R"({"weight_map":{"a":".."}})", {"\"a\"", "plain name"}},
           {R"({"weight_map":{"a":"/etc/passwd"}})", {"\"a\"", "/etc/passwd", "plain name"}},
           {R"({"weight_map":{"a":"sub/one.safetensors"}})", {"\"a\"", "plain name"}},
           {R"({"weight_map":{"a":"sub\\one.safetensors"}})", {"\"a\"", "plain name"}},
           {R"({"weight_map":{"a":"one.safetensors\u0000x"}})", {"\"a\"", "plain name"}},
           {R"({"weight_map":{"a":"three.safetensors"}})", {"three.safetensors", "incomplete"}},
           {R"({"weight_map":{"a":"two.safetensors"}})", {"\"a\"", "two.safetensors", "does not hold it"}},
           {R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors"}})", {"\"b\"", "does not hold it"}},
           {R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})",
            {"\"c\"", "does not hold it"}},
           {R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})", {"\"a\"", "twice"}},
           {R"({"weight_map":{"a":"one.safetensors","b":"copy.safetensors"}})", {"\"a\"", "also in"}},
           {R"({"weight_map":{"a":"folder"}})", {"folder", "regular file"}},
       }) {
    SCOPED_TRACE(c.index);
    TempDir dir;
    dir.write("one.safetensors", kOne);
    dir.write("two.safetensors", kTwo);
    dir.write("copy.safetensors", kBoth);
    std::filesystem::create_directory(dir.path() / "folder");
    dir.write(kIndex, c.index);
    test::Failure f = failure_of([&] { Checkpoint::open(dir.path()); });
    EXPECT_EQ(f.code, Code::kBadData);
    for (const std::string& part : c.message) EXPECT_THAT(f.message, HasSubstr(part));
  }
}

TEST(Safetensors, ReleasedTensorsReadBackTheSame) {
  const size_t n = 5 * 4096 + 123;
  std::string data(2 * n, '\0');
  std::mt19937 rng(7);
  for (char& ch : data) ch = char(rng());
  TempDir dir;
  const std::string header = object(entry("a", "U8", fmt::format("[{}]", n), fmt::format("[0,{}]", n)) + "," +
                                    entry("b", "U8", fmt::format("[{}]", n), fmt::format("[{},{}]", n, 2 * n)));
  dir.write(kFile, safetensors(header, data));
  Checkpoint c = Checkpoint::open(dir.path());
  for (const char* name : {"a", "b"}) c.release({c.find(name)});
  c.release({c.find("b"), c.find("a")});  // neighbours, as one range
  EXPECT_EQ(std::memcmp(c.find("a")->data, data.data(), n), 0);
  EXPECT_EQ(std::memcmp(c.find("b")->data, data.data() + n, n), 0);
}

// Thousands of damaged copies of a valid file: each opens with every tensor inside the file, or is refused with an
// Error. What is in range is read, so that a sanitizer sees a bad pointer.
TEST(Safetensors, SurvivesMutations) {
  const std::string valid = safetensors(
      "{\"__metadata__\":{\"format\":\"pt\"}," + entry("a", "F32", "[2,3]", "[0,24]") + "," +
          entry("b.weight", "F8_E4M3", "[4,4]", "[24,40]") + "," + entry("c", "BF16", "[0]", "[40,40]") + "}",
      std::string(40, 'x'));
  const std::string alphabet = "0123456789[]{},:\"-eE.x\\";
  std::mt19937 rng(20250101);
  auto below = [&](size_t n) { return size_t(rng() % n); };
  TempDir dir;
  int opened = 0, refused = 0;
  unsigned sum = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string s = valid;
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      size_t at = below(s.size());
      switch (below(5)) {
        case 0:
          s[at] = char(rng());
          break;
        case 1:
          s[at] = alphabet[below(alphabet.size())];
          break;
        case 2:
          s.insert(at, 1, alphabet[below(alphabet.size())]);
          break;
        case 3:
          s.erase(at, 1 + below(4));
          break;
        case 4:
          s.insert(at, s.substr(below(s.size()), below(30)));
          break;
      }
    }
    // Half of them with a header length that fits again, so that the mutation is not caught by the length alone.
    if (round % 2 == 0 && s.size() > 48) {
      uint64_t fits = s.size() - 48;
      for (int i = 0; i < 8; ++i) s[i] = char(fits >> (8 * i));
    }
    dir.write(kFile, s);
    try {
      Checkpoint c = Checkpoint::open(dir.path());
      ++opened;
      int64_t total = 0;
      for (const auto& [name, t] : c.tensors()) {
        total += t.num_bytes;
        for (int64_t i = 0; i < t.num_bytes; ++i) sum += std::to_integer<unsigned>(t.data[i]);
      }
      EXPECT_EQ(total, c.total_bytes());
      EXPECT_LE(total, int64_t(s.size()) - 8);
    } catch (const Error& e) {
      ++refused;
      EXPECT_EQ(e.code(), Code::kBadData);
      EXPECT_THAT(std::string(e.what()), HasSubstr(kFile));
    }
  }
  EXPECT_GT(opened, 50);
  EXPECT_GT(refused, 1000);
  EXPECT_GT(sum, 0u);
}

TEST(Safetensors, OpensTheCheckpointsOfTheRepository) {
  struct Case {
    const char* dir;
    size_t num_tensors;
    int64_t total_bytes;
  };
  for (const Case& c : {Case{"models/demo", 1313, 31861552},
                        {"tests/golden/deepseek_v3_a", 139, 2484768},
                        {"tests/golden/deepseek_v3_fp8_a", 259, 2500840},
                        {"tests/golden/deepseek_v2_a", 107, 2248832}}) {
    SCOPED_TRACE(c.dir);
    Checkpoint checkpoint = Checkpoint::open(test::source_dir() / c.dir);
    EXPECT_EQ(checkpoint.tensors().size(), c.num_tensors);
    EXPECT_EQ(checkpoint.total_bytes(), c.total_bytes);
  }
}

}  // namespace
}  // namespace moectl
