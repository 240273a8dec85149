// Stands in for the decoders where libjpeg and libpng are not used.
#include "image.hpp"

namespace image {

Image read(const std::string& path) {
  throw Error(path +
              ": this program was built without JPEG and PNG; configure it with "
              "-DVIT_EXPORT_EXAMPLE_IMAGES=ON");
}

}  // namespace image
