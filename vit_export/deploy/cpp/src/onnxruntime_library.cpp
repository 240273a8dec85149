#include "onnxruntime_library.h"

#include <dirent.h>
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "failure.h"

namespace vit_export {

namespace {

constexpr int kOldestApi = 21;
constexpr const char* kName = "libonnxruntime.so";
constexpr const char* kHint =
    "`pip install onnxruntime` brings it (onnxruntime/capi/libonnxruntime.so.*); name it in "
    "Options::library or in the environment variable ONNXRUNTIME_LIBRARY";

Failure provider_error(std::string message, std::string hint = {}) {
  return {VIT_EXPORT_PROVIDER_ERROR, std::move(message), std::move(hint)};
}

bool is_folder(const std::string& path) {
  struct stat status = {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

// The library in a folder: libonnxruntime.so.1, libonnxruntime.so, or the one with the highest
// version in its name; empty where there is none.
std::string in_folder(const std::string& folder) {
  const std::string prefix = std::string(kName) + ".";
  std::string newest;
  std::vector<int> highest;
  DIR* listing = ::opendir(folder.c_str());
  if (!listing) return {};
  while (const dirent* entry = ::readdir(listing)) {
    const std::string name = entry->d_name;
    std::vector<int> version;
    if (name == kName) {
      version = {INT_MAX, 0};
    } else if (name == prefix + "1") {
      version = {INT_MAX, 1};
    } else if (name.compare(0, prefix.size(), prefix) == 0) {
      for (std::size_t at = prefix.size(); at < name.size();) {
        version.push_back(std::atoi(name.c_str() + at));
        at = std::min(name.find('.', at), name.size() - 1) + 1;
      }
    }
    if (!version.empty() && version > highest) {
      highest = version;
      newest = folder + "/" + name;
    }
  }
  ::closedir(listing);
  return newest;
}

std::string executable_folder() {
  std::string path(PATH_MAX, '\0');
  const ssize_t size = ::readlink("/proc/self/exe", path.data(), path.size());
  if (size <= 0) return {};
  path.resize(static_cast<std::size_t>(size));
  return path.substr(0, path.rfind('/'));
}

// What to give to the loader, in turn.
std::vector<std::string> candidates(const std::string& given) {
  const char* variable = std::getenv("ONNXRUNTIME_LIBRARY");
  const std::string named = !given.empty() ? given : variable ? variable : "";
  if (!named.empty()) {
    if (!is_folder(named)) return {named};
    const std::string found = in_folder(named);
    if (found.empty()) throw provider_error(named + ": holds no " + kName, kHint);
    return {found};
  }
  std::vector<std::string> names;
  if (const std::string folder = executable_folder(); !folder.empty())
    for (const std::string& place : {folder, folder + "/../lib"})
      if (const std::string found = in_folder(place); !found.empty()) names.push_back(found);
  names.push_back(std::string(kName) + ".1");
  names.push_back(kName);
  return names;
}

// The minor version of "1.31.1", which is the newest API version that the library has; 0 where
// the text is another.
int minor_version(const std::string& version) {
  const std::size_t dot = version.find('.');
  return version.compare(0, 2, "1.") == 0 && dot != std::string::npos
             ? std::atoi(version.c_str() + dot + 1)
             : 0;
}

std::string path_of(void* symbol, const std::string& otherwise) {
  Dl_info info = {};
  return ::dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : otherwise;
}

std::unique_ptr<OnnxRuntimeLibrary> open_library(void* handle, const std::string& name) {
  using GetApiBase = const OrtApiBase*(ORT_API_CALL*)();
  void* symbol = ::dlsym(handle, "OrtGetApiBase");
  if (!symbol) throw provider_error(name + ": is not ONNX Runtime (no OrtGetApiBase)", kHint);
  const OrtApiBase* base = reinterpret_cast<GetApiBase>(symbol)();
  auto made = std::make_unique<OnnxRuntimeLibrary>();
  made->path = path_of(symbol, name);
  made->version = base->GetVersionString();
  // It prints a line where a version is too new, so that is not tried.
  const int newest = std::min<int>(ORT_API_VERSION, minor_version(made->version));
  for (int version = newest; version >= kOldestApi && !made->api; --version) {
    made->api = base->GetApi(static_cast<std::uint32_t>(version));
    made->api_version = version;
  }
  if (!made->api)
    throw provider_error(made->path + ": is ONNX Runtime " + made->version + ", expected 1." +
                             std::to_string(kOldestApi) + " or newer",
                         kHint);
  check_ort(made->api, made->api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "vit_export", &made->env),
            VIT_EXPORT_PROVIDER_ERROR, made->path + ": cannot be started");
  return made;
}

std::unique_ptr<OnnxRuntimeLibrary> find_library(const std::string& given) {
  std::string reasons;
  for (const std::string& name : candidates(given)) {
    if (void* handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL))
      return open_library(handle, name);
    reasons += (reasons.empty() ? "" : "; ") + std::string(::dlerror());
  }
  throw provider_error("ONNX Runtime's library cannot be loaded: " + reasons, kHint);
}

}  // namespace

const OnnxRuntimeLibrary& load_onnxruntime(const std::string& given) {
  // Both live until the process ends: a session may outlive every static object.
  static auto* const mutex = new std::mutex;
  static auto* const loaded = new std::map<std::string, std::unique_ptr<OnnxRuntimeLibrary>>;
  const std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<OnnxRuntimeLibrary>& library = (*loaded)[given];
  if (!library) library = find_library(given);
  return *library;
}

void check_ort(const OrtApi* api, OrtStatus* status, vit_export_code code,
               const std::string& what) {
  if (!status) return;
  std::string words = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  words = words.substr(0, words.find('\n'));
  throw Failure(code, what + ": " + words);
}

}  // namespace vit_export
