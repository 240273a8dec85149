// How many CPUs this process may use.
#pragma once

namespace vit_export {

// Counts the CPUs of the process's affinity mask, and no more than its control group grants.
int usable_cpus();

}  // namespace vit_export
