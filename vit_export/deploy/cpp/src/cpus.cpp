#include "cpus.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace vit_export {

namespace {

int from_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());  // more CPUs than the set holds
}

// Returns the quota of one control group; 0 for none. Version 2 writes "QUOTA PERIOD" or
// "max PERIOD" into one file, version 1 two files with -1 for no limit.
double quota_of(const std::string& group) {
  double quota = 0, period = 0;
  if (std::ifstream both(group + "/cpu.max"); both) {
    both >> quota >> period;  // "max" fails, and leaves zeros
  } else {
    std::ifstream(group + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(group + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

bool has_cpu(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');)
    if (name == "cpu") return true;
  return false;
}

// The folders of this process's control groups, and all folders above them. A container may see
// the path of the host, of which only the mounted root exists.
std::vector<std::string> groups(const std::string& root) {
  std::vector<std::string> all;
  std::ifstream stream(root + "/proc/self/cgroup");
  for (std::string line; std::getline(stream, line);) {  // "2:cpu,cpuacct:/docker/ab"
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (!controllers.empty() && !has_cpu(controllers)) continue;
    const auto mounts = controllers.empty() ? std::vector<std::string>{"", "/unified"}
                                            : std::vector<std::string>{"/cpu", "/" + controllers};
    for (const std::string& mount : mounts)
      for (std::string below = path;; below.resize(below.rfind('/'))) {
        all.push_back(root + "/sys/fs/cgroup" + mount + below);
        if (below.find('/') == std::string::npos) break;
      }
  }
  return all;
}

}  // namespace

double cpu_quota(const std::string& root) {
  double smallest = 0;
  for (const std::string& group : groups(root))
    if (const double quota = quota_of(group); quota > 0 && (smallest == 0 || quota < smallest))
      smallest = quota;
  return smallest;
}

int allowed_cpus() { return std::max(from_affinity(), 1); }

int usable_cpus() {
  const double quota = std::ceil(cpu_quota());
  return quota > 0 ? static_cast<int>(std::min<double>(allowed_cpus(), quota)) : allowed_cpus();
}

}  // namespace vit_export
