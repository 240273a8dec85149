#include "manifest.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>

#include "failure.h"
#include "json_text.h"

namespace vit_export {

namespace {

constexpr int kSchemaVersion = 1;  // the newest that this library reads
constexpr std::int64_t kLargestSize = 1 << 30;
constexpr std::size_t kMostDimensions = 8, kMostTensors = 64;

using std::runtime_error;

const char* kind_of(const Json& value) {
  if (value.is_number_float()) return "a number";
  if (value.is_number()) return "a whole number";
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  if (value.is_string()) return "text";
  return value.is_null() ? "null" : "true or false";
}

runtime_error wrong(const std::string& where, const std::string& expected, const Json& found) {
  return runtime_error(where + ": expected " + expected + ", got " + kind_of(found));
}

const Json& required(const Json& object, const char* name, const std::string& where) {
  const auto found = object.find(name);
  if (found == object.end()) throw runtime_error(where + "lacks the field '" + name + "'");
  return *found;
}

std::string text(const Json& value, const std::string& where) {
  if (!value.is_string()) throw wrong(where, "text", value);
  auto text = value.get<std::string>();
  if (text.find('\0') != std::string::npos) throw runtime_error(where + ": holds a zero byte");
  return text;
}

std::string text_or(const Json& object, const char* name, const std::string& otherwise) {
  const auto found = object.find(name);
  return found == object.end() ? otherwise : text(*found, name);
}

std::int64_t whole(const Json& value, const std::string& where, std::int64_t least,
                   std::int64_t most) {
  if (!value.is_number_integer()) throw wrong(where, "a whole number", value);
  const bool is_huge =
      value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(most);
  const auto number = is_huge ? most : value.get<std::int64_t>();
  if (is_huge || number < least || number > most)
    throw runtime_error(where + " is " + value.dump() + ", expected " + std::to_string(least) +
                        " to " + std::to_string(most));
  return number;
}

double number(const Json& value, const std::string& where) {
  if (!value.is_number()) throw wrong(where, "a number", value);
  const auto found = value.get<double>();
  if (!std::isfinite(found)) throw runtime_error(where + ": must be finite");
  return found;
}

const Json& list(const Json& value, const std::string& where, std::size_t most) {
  if (!value.is_array()) throw wrong(where, "a list", value);
  if (value.size() > most)
    throw runtime_error(where + " has " + std::to_string(value.size()) +
                        " entries, expected at most " + std::to_string(most));
  return value;
}

const Json& object(const Json& value, const std::string& where) {
  if (!value.is_object()) throw wrong(where, "an object", value);
  return value;
}

std::string indexed(const std::string& name, std::size_t index) {
  return name + '[' + std::to_string(index) + ']';
}

std::string choice(const std::string& value, const std::string& where,
                   std::initializer_list<const char*> choices) {
  std::string known;
  for (const char* one : choices) {
    if (value == one) return value;
    known += (known.empty() ? "'" : ", '") + std::string(one) + "'";
  }
  throw runtime_error(where + "='" + value + "': expected one of " + known);
}

TensorSpec tensor_spec(const Json& value, const std::string& where) {
  object(value, where);
  TensorSpec spec;
  spec.name = text(required(value, "name", where + ": "), where + ".name");
  spec.dtype = text(required(value, "dtype", where + ": "), where + ".dtype");
  const std::string path = where + ".shape";
  for (const Json& size : list(required(value, "shape", where + ": "), path, kMostDimensions)) {
    const bool is_dynamic = size.is_string();
    spec.shape.push_back(is_dynamic ? -1 : whole(size, path, 1, kLargestSize));
    spec.dimensions.push_back(is_dynamic ? text(size, path) : "");
  }
  return spec;
}

std::vector<TensorSpec> tensor_specs(const Json& data, const char* name) {
  std::vector<TensorSpec> specs;
  for (const Json& value : list(required(data, name, ""), name, kMostTensors))
    specs.push_back(tensor_spec(value, indexed(name, specs.size())));
  if (specs.empty()) throw runtime_error(std::string(name) + " is empty");
  return specs;
}

std::vector<double> numbers(const Json& value, const std::string& where) {
  std::vector<double> found;
  for (const Json& one : list(value, where, kMostChannels))
    found.push_back(number(one, indexed(where, found.size())));
  return found;
}

Preprocess preprocess(const Json& value) {
  const std::string name = "preprocess";
  object(value, name);
  Preprocess made;
  const Json& size = list(required(value, "size", name + ": "), name + ".size", 2);
  if (size.size() != 2) throw runtime_error(name + ".size: expected a height and a width");
  made.height = whole(size[0], name + ".size[0]", 1, kLargestSide);
  made.width = whole(size[1], name + ".size[1]", 1, kLargestSide);
  if (value.contains("crop_pct")) made.crop_pct = number(value["crop_pct"], name + ".crop_pct");
  made.interpolation = text_or(value, "interpolation", made.interpolation);
  made.crop_mode = text_or(value, "crop_mode", made.crop_mode);
  made.color = text_or(value, "color", made.color);
  if (value.contains("mean")) made.mean = numbers(value["mean"], name + ".mean");
  if (value.contains("std")) made.std = numbers(value["std"], name + ".std");
  if (const auto known = value.find("known"); known != value.end()) {
    if (!known->is_boolean()) throw wrong(name + ".known", "true or false", *known);
    made.known = known->get<bool>();
  }
  check_preprocess(made);
  return made;
}

std::optional<bool> verdict(const Json& data) {
  const auto stages = data.find("certificate");
  if (stages == data.end() || list(*stages, "certificate", 1000).empty()) return std::nullopt;
  const Json& last = object(stages->back(), "certificate");
  const Json& passed = required(last, "passed", "certificate: ");
  if (passed.is_null()) return std::nullopt;
  if (!passed.is_boolean()) throw wrong("certificate: passed", "true, false or null", passed);
  return passed.get<bool>();
}

Manifest from_json(const Json& data) {
  Manifest made;
  made.variant = text(required(data, "variant", ""), "variant");
  if (const auto config = data.find("config"); config != data.end()) {
    made.has_config = !object(*config, "config").empty();
    if (const auto size = config->find("patch_size"); size != config->end())
      made.patch_size = whole(*size, "config.patch_size", 1, kLargestSide);
  }
  made.precision = choice(text_or(data, "precision", "fp32"), "precision",
                          {"fp32", "fp16", "bf16", "int8", "int8-static"});
  made.activation =
      choice(text_or(data, "activation", "softmax"), "activation", {"softmax", "sigmoid", "none"});
  made.resize = text_or(data, "resize", "");
  made.graph_sha256 = text_or(data, "graph_sha256", "");
  made.schema_version = static_cast<int>(data["schema_version"].get<std::int64_t>());
  made.opset = static_cast<int>(whole(required(data, "opset", ""), "opset", 1, 10000));
  made.passed = verdict(data);
  made.inputs = tensor_specs(data, "inputs");
  made.outputs = tensor_specs(data, "outputs");
  if (const auto found = data.find("preprocess"); found != data.end() && !found->is_null())
    made.preprocess = preprocess(*found);
  if (const auto found = data.find("labels"); found != data.end())
    for (const Json& label : list(*found, "labels", 1 << 20))
      made.labels.push_back(text(label, indexed("labels", made.labels.size())));
  return made;
}

// Throws where a newer release wrote the data.
void check_schema(const Json& data, const std::string& what) {
  const auto found = data.find("schema_version");
  if (found == data.end()) throw runtime_error("it has no schema_version");
  if (whole(*found, "schema_version", 0, kLargestSize) <= kSchemaVersion) return;
  std::string needed = "vit-export";
  if (const auto tools = data.find("toolchain"); tools != data.end() && tools->is_object())
    if (const auto writer = tools->find("vit-export"); writer != tools->end())
      if (writer->is_string()) needed = "'vit-export>=" + writer->get<std::string>() + "'";
  throw artifact_error(what + " has schema version " + found->dump() +
                           ", and this library reads versions up to " +
                           std::to_string(kSchemaVersion),
                       "build the program with the C++ files of " + needed);
}

}  // namespace

std::optional<std::int64_t> TensorSpec::fixed_batch() const {
  if (shape.empty()) return 1;
  return shape[0] < 0 ? std::nullopt : std::optional<std::int64_t>(shape[0]);
}

bool TensorSpec::fits(const std::vector<std::int64_t>& given, std::size_t start) const {
  if (given.size() != shape.size()) return false;
  for (std::size_t i = start; i < shape.size(); ++i)
    if (shape[i] >= 0 && shape[i] != given[i]) return false;
  return true;
}

std::string TensorSpec::str() const {
  std::string sizes;
  for (std::size_t i = 0; i < shape.size(); ++i)
    sizes += (i ? ", " : "") + (shape[i] < 0 ? dimensions[i] : std::to_string(shape[i]));
  return name + ": " + dtype + " (" + sizes + ")";
}

Manifest read_manifest(const std::string& text, const std::string& source) {
  const std::string what = source + ": its metadata key 'vit_export'";
  try {
    const Json data = parse_json(text);
    if (!data.is_object()) throw wrong("it", "an object", data);
    check_schema(data, what);
    Manifest made = from_json(data);
    made.json = text;
    return made;
  } catch (const runtime_error& error) {
    throw artifact_error(what + " is damaged: " + error.what(), "export the file again");
  } catch (const Json::exception& error) {
    throw artifact_error(what + " is damaged: " + error.what(), "export the file again");
  }
}

}  // namespace vit_export
