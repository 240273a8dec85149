// Prints the quota of the control groups below each folder that is named.
#include <iostream>

#include "cpus.h"

int main(int count, char** roots) {
  for (int i = 1; i < count; ++i) std::cout << vit_export::cpu_quota(roots[i]) << '\n';
}
