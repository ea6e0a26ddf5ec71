// A torch-free ExecuTorch runner: JSON lines in, JSON lines out, tensors into files.
//
//   executorch_runner THREADS MODEL.pte [DATA.ptd ...]
//
// It answers one line for each line that it reads:
//   generate TOKENS ID...        -> {"event":"generated","tokens":[...],"ns":[first, second, ...]}
//   stream TOKENS ID...          -> the same, and {"event":"token","token":...} before it for each token as it comes
//   logits FILE PROMPT ID...     -> {"event":"written","shape":[tokens, vocabulary]}
//   signals FILE ID...           -> {"event":"written","shapes":[[...], ...]}
// and first of all {"event":"loaded","ns":...,"threads":...}, or {"event":"error","message":"..."} with exit code 1.
// Requests are words rather than JSON, so that nothing here needs a parser: whoever starts it writes them.
// `logits` reads PROMPT ids in one prefill and the rest one by one from the cache. Files hold raw float32, one tensor
// after the other, in this machine's byte order.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// The wheel ships the symbol without its header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;

constexpr size_t kMaxLine = 1 << 20;    // bytes of a request
constexpr long kMaxTokens = 1 << 16;    // ids of a request, and tokens that one may ask for
constexpr uint32_t kMaxThreads = 256;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void require(Error error, const std::string& what) {
  if (error != Error::Ok) {
    throw std::runtime_error(what + ": ExecuTorch error " + std::to_string(static_cast<int>(error)));
  }
}

long number(const std::string& word, long least, long most) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(word.c_str(), &end, 10);
  if (word.empty() || *end != '\0' || errno != 0 || value < least || value > most) {
    throw std::runtime_error("expected a whole number from " + std::to_string(least) + " to " +
                             std::to_string(most) + ", got '" + word.substr(0, 40) + "'");
  }
  return value;
}

std::vector<int64_t> ids_of(std::istringstream& words) {
  std::vector<int64_t> ids;
  for (std::string word; words >> word;) {
    ids.push_back(number(word, 0, INT32_MAX));
    if (ids.size() > static_cast<size_t>(kMaxTokens)) throw std::runtime_error("too many ids");
  }
  if (ids.empty()) throw std::runtime_error("expected token ids, got none");
  return ids;
}

// Runs a method on `ids` at the positions from `start` on. What it returns lives until the next call of the method.
std::vector<Tensor> run(Module& module, const std::string& method, const int64_t* ids, size_t count, size_t start) {
  std::vector<int64_t> own(ids, ids + count), positions(count);
  for (size_t i = 0; i < count; ++i) positions[i] = static_cast<int64_t>(start + i);
  const auto size = static_cast<executorch::aten::SizesType>(count);
  auto read = from_blob(own.data(), {1, size}, ScalarType::Long);
  auto where = from_blob(positions.data(), {size}, ScalarType::Long);
  auto found = module.execute(method, std::vector<EValue>{read, where});
  require(found.error(), method);
  std::vector<Tensor> tensors;
  for (auto& value : found.get()) {
    if (!value.isTensor() || value.toTensor().scalar_type() != ScalarType::Float) {
      throw std::runtime_error(method + ": expected float32 tensors");
    }
    tensors.push_back(value.toTensor());
  }
  return tensors;
}

void write(std::ofstream& file, const Tensor& tensor) {
  file.write(reinterpret_cast<const char*>(tensor.const_data_ptr<float>()), tensor.nbytes());
}

std::ofstream opened(std::istringstream& words) {
  std::string path;
  words >> path;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  if (!file) throw std::runtime_error("cannot write '" + path.substr(0, 200) + "'");
  return file;
}

void finish(std::ofstream& file) {
  file.close();
  if (!file) throw std::runtime_error("a file could not be written: is the disk full?");
}

std::string listed(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? "," : "") + std::to_string(values[i]);
  return text + "]";
}

std::string shape_of(const Tensor& tensor) {
  return listed(std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end()));
}

int64_t greedy(const Tensor& logits) {
  const auto vocabulary = static_cast<size_t>(logits.size(logits.dim() - 1));
  const float* last = logits.const_data_ptr<float>() + logits.numel() - vocabulary;
  for (size_t i = 0; i < vocabulary; ++i) {
    if (!std::isfinite(last[i])) throw std::runtime_error("a logit is not finite");
  }
  return std::max_element(last, last + vocabulary) - last;
}

std::string generate(Module& module, std::istringstream& words, bool tell) {
  std::string word;
  words >> word;
  const long wanted = number(word, 1, kMaxTokens);
  std::vector<int64_t> pending = ids_of(words), tokens, times;
  size_t past = 0;
  for (long i = 0; i < wanted; ++i) {
    const int64_t started = now_ns();
    const int64_t token = greedy(run(module, "forward", pending.data(), pending.size(), past).at(0));
    times.push_back(now_ns() - started);
    past += pending.size();
    pending.assign(1, token);
    tokens.push_back(token);
    if (tell) std::cout << "{\"event\":\"token\",\"token\":" << token << "}" << std::endl;
  }
  return "{\"event\":\"generated\",\"tokens\":" + listed(tokens) + ",\"ns\":" + listed(times) + "}";
}

std::string logits(Module& module, std::istringstream& words) {
  std::ofstream file = opened(words);
  std::string word;
  words >> word;
  const auto prompt = static_cast<size_t>(number(word, 1, kMaxTokens));
  const std::vector<int64_t> ids = ids_of(words);
  if (prompt > ids.size()) throw std::runtime_error("the prompt is longer than the ids");
  int64_t vocabulary = 0;
  for (size_t start = 0; start < ids.size();) {
    const size_t count = start == 0 ? prompt : 1;
    const Tensor found = run(module, "forward", ids.data() + start, count, start).at(0);
    vocabulary = found.size(found.dim() - 1);
    write(file, found);
    start += count;
  }
  finish(file);
  return "{\"event\":\"written\",\"shape\":" + listed({static_cast<int64_t>(ids.size()), vocabulary}) + "}";
}

std::string signals(Module& module, std::istringstream& words) {
  std::ofstream file = opened(words);
  const std::vector<int64_t> ids = ids_of(words);
  std::string shapes;
  for (const Tensor& found : run(module, "signals", ids.data(), ids.size(), 0)) {
    write(file, found);
    shapes += (shapes.empty() ? "" : ",") + shape_of(found);
  }
  finish(file);
  return "{\"event\":\"written\",\"shapes\":[" + shapes + "]}";
}

std::string answer(Module& module, const std::string& line) {
  std::istringstream words(line);
  std::string verb;
  words >> verb;
  if (verb == "generate" || verb == "stream") return generate(module, words, verb == "stream");
  if (verb == "logits") return logits(module, words);
  if (verb == "signals") return signals(module, words);
  throw std::runtime_error("expected generate, stream, logits or signals, got '" + verb.substr(0, 40) + "'");
}

std::string escaped(const std::string& text) {
  std::string found;
  for (const char c : text) {
    if (c == '"' || c == '\\') found += '\\';
    found += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return found;
}

// A line of at most kMaxLine bytes; false at the end of the input.
bool next_line(std::string& line) {
  line.clear();
  for (int c; (c = std::cin.get()) != EOF && c != '\n';) {
    if (line.size() == kMaxLine) throw std::runtime_error("a request is longer than 1 MiB");
    line += static_cast<char>(c);
  }
  return !line.empty() || std::cin.good();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 3) throw std::runtime_error("usage: executorch_runner THREADS MODEL.pte [DATA.ptd ...]");
    const auto threads = static_cast<uint32_t>(number(argv[1], 1, kMaxThreads));
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(threads);
    const int64_t started = now_ns();
    Module module(argv[2], std::vector<std::string>(argv + 3, argv + argc), Module::LoadMode::Mmap);
    require(module.load_method("forward"), "load");
    std::cout << "{\"event\":\"loaded\",\"ns\":" << now_ns() - started << ",\"threads\":" << threads << "}"
              << std::endl;
    for (std::string line; next_line(line);) {
      if (!line.empty()) std::cout << answer(module, line) << std::endl;
    }
  } catch (const std::exception& error) {
    std::cout << "{\"event\":\"error\",\"message\":\"" << escaped(error.what()) << "\"}" << std::endl;
    return 1;
  }
  return 0;
}
