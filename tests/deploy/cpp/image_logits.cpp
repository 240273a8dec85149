// Prints the logits of each image on a line: image_logits MODEL IMAGE...
#include <iostream>
#include <vit_export/vit_export.hpp>

#include "image.hpp"

int main(int argc, char** argv) {
  std::cout.precision(9);  // reads back as the same float
  try {
    const vit::Model model(argv[1]);
    for (int i = 2; i < argc; ++i) {
      const image::Image image = image::read(argv[i]);
      const vit::Tensor pixel_values =
          model.prepare({vit::Image{image.rgb.get(), image.width, image.height, 0, 3}});
      for (const float value : model.run(pixel_values.values, 1)["logits"].values) {
        std::cout << value << ' ';
      }
      std::cout << '\n';
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
