// The command line of vit-classify.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

struct Arguments {
  std::string model;
  std::vector<std::string> images;
  int top = 5;
  std::string provider = "cpu";
  int threads = 0;  // 0: all CPUs
  int bench = 0;    // 0: no timing
  bool embed = false;
  bool selftest = false;
  bool help = false;
  bool version = false;
};

// A command line that cannot be understood: what was given, and what was expected.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Text of --help.
extern const char* const help_text;

Arguments parse_arguments(const std::vector<std::string>& words);
