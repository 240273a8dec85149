// How many CPUs this process may use: the same number as Python's `vit_export.host.cpus`.
#pragma once

#include <string>

namespace vit_export {

// Counts the CPUs of the process's affinity mask, at least 1.
int allowed_cpus();

// Counts them, and no more than its control groups grant.
int usable_cpus();

// Returns the smallest quota, in CPUs, of this process's control groups; 0 without one. `root` is
// the folder of `proc` and `sys`, for tests.
double cpu_quota(const std::string& root = "");

}  // namespace vit_export
