#include "golden.h"

#include <cmath>
#include <stdexcept>

#include "failure.h"

namespace vit_export {

namespace {

using Arrays = std::map<std::string, NpyArray>;
using std::runtime_error;

constexpr const char* kHint =
    "export the model again, or give the NAME.golden.npz that lies beside NAME.onnx";

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

// Arrays named PREFIX.NAME, by NAME.
Arrays named(const Arrays& arrays, const std::string& prefix) {
  Arrays found;
  for (auto i = arrays.lower_bound(prefix); i != arrays.end() && starts_with(i->first, prefix); ++i)
    found.emplace(i->first.substr(prefix.size()), i->second);
  return found;
}

runtime_error unexpected(const std::string& name, const NpyArray& array, const char* expected) {
  return runtime_error(name + " is " + array.str() + ", expected " + expected);
}

NpyArray images(const Arrays& arrays) {
  const auto found = arrays.find("images");
  if (found == arrays.end())
    throw runtime_error("it has no images; this library reads golden files of image models");
  const NpyArray& array = found->second;
  const bool fits =
      array.kind == 'u' && array.item_bytes == 1 && array.shape.size() == 4 && array.count() > 0;
  if (!fits) throw unexpected("images", array, "uint8 (S, H, W, C)");
  return array;
}

double own_error(const std::string& name, const NpyArray& array, bool may_be_infinite) {
  if (array.kind != 'f' || array.item_bytes != 8 || !array.shape.empty())
    throw unexpected(name, array, "float64 ()");
  const double error = array.doubles().front();
  if (!(error >= 0) || (std::isinf(error) && !may_be_infinite))
    throw runtime_error(name + " holds " + std::to_string(error) + ", expected at least 0");
  return error;
}

Golden from_arrays(const Arrays& arrays) {
  Golden golden;
  golden.images = images(arrays);
  for (const auto& [name, array] : named(arrays, "output.")) {
    const bool fits = (array.kind == 'f' || array.kind == 'i' || array.kind == 'u') &&
                      !array.shape.empty() && array.count() > 0 &&
                      array.shape[0] == golden.images.shape[0];
    if (!fits) throw unexpected("output." + name, array, "numbers (S, ...)");
    golden.outputs[name] = {array.shape, array.doubles()};
  }
  if (golden.outputs.empty()) throw runtime_error("it lacks its outputs");
  for (const std::string baseline : {"e32", "e16", "ebf16"})
    for (const auto& [name, array] : named(arrays, baseline + "."))
      golden.errors[baseline][name] = own_error(baseline + "." + name, array, baseline != "e32");
  for (const auto& [name, output] : golden.outputs) {
    (void)output;
    if (!golden.errors["e32"].count(name)) throw runtime_error("it lacks 'e32." + name + "'");
  }
  return golden;
}

// The size in a name such as `48x32.images`; empty where there is none.
std::string other_size(const std::string& name) {
  std::size_t at = name.find_first_not_of("0123456789");
  if (at == 0 || at == std::string::npos || name[at] != 'x') return {};
  const std::size_t second = at + 1;
  at = name.find_first_not_of("0123456789", second);
  if (at == second || at == std::string::npos || name[at] != '.') return {};
  return name.substr(0, at);
}

}  // namespace

Golden read_golden(const Bytes& bytes, const std::string& source) {
  try {
    const Arrays arrays = read_npz(bytes);
    Golden golden = from_arrays(arrays);
    std::map<std::string, Arrays> others;
    for (const auto& [name, array] : arrays)
      if (const std::string size = other_size(name); !size.empty())
        others[size].emplace(name.substr(size.size() + 1), array);
    for (const auto& [size, other] : others) {
      golden.others.push_back(from_arrays(other));
      const Golden& added = golden.others.back();
      const std::string found =
          std::to_string(added.height()) + "x" + std::to_string(added.width());
      if (found != size) throw runtime_error(size + ".images are pictures of " + found);
    }
    return golden;
  } catch (const std::logic_error& error) {  // a read beyond the end
    throw artifact_error(source + ": not a golden file, or a damaged one: " + error.what(), kHint);
  } catch (const runtime_error& error) {
    throw artifact_error(source + ": not a golden file, or a damaged one: " + error.what(), kHint);
  }
}

}  // namespace vit_export
