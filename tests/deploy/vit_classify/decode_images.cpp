// Decodes the images whose paths stand on standard input, one a line. Prints for each "width
// height" and writes the pixels to the path plus ".rgb", or prints "Error: message".
#include <fstream>
#include <iostream>
#include <string>

#include "image.hpp"

int main() {
  for (std::string path; std::getline(std::cin, path);) {
    try {
      const image::Image image = image::read(path);
      std::ofstream(path + ".rgb", std::ios::binary)
          .write(reinterpret_cast<const char*>(image.rgb.get()),
                 static_cast<std::streamsize>(image.size()));
      std::cout << image.width << ' ' << image.height << '\n';
    } catch (const image::Error& error) {
      std::cout << "Error: " << error.what() << '\n';
    }
  }
}
