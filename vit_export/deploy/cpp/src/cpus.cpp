#include "cpus.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <thread>

namespace vit_export {

namespace {

int from_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());  // more CPUs than the set holds
}

// The limit of control groups, rounded up; 0 for none. Version 2 writes "QUOTA PERIOD" or
// "max PERIOD" into one file, version 1 two files with -1 for no limit.
int from_control_group() {
  std::string quota;
  double period = 0;
  if (std::ifstream both("/sys/fs/cgroup/cpu.max"); both) {
    both >> quota >> period;
  } else {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  const bool is_number = !quota.empty() && quota.size() < 12 &&
                         quota.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number || !(period > 0)) return 0;
  const double cpus = std::stod(quota) / period;
  return cpus < 1 ? 1 : cpus > 1024 ? 0 : static_cast<int>(cpus + 0.999);
}

}  // namespace

int usable_cpus() {
  const int affinity = std::max(from_affinity(), 1), group = from_control_group();
  return group > 0 ? std::min(affinity, group) : affinity;
}

}  // namespace vit_export
