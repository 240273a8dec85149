// Prepare images for a model as Python's vit_export.images does, to the bit.
#pragma once

#include <cstdint>
#include <vector>

#include "preprocess.h"
#include "resample.h"

namespace vit_export {

// Converts an image to the colours of the model, resizes it and cuts its centre: uint8 (H, W, C)
// of the model's size. Throws Failure.
Pixels resize_and_crop(const PixelView& image, const Preprocess& preprocess);

// Checks the samples and sizes of an image; throws Failure.
void check_image(const PixelView& image);

// Converts the samples to `RGB` or `L`; "" takes them as they are. Throws Failure.
Pixels convert_color(const PixelView& image, const std::string& color);

// Normalises `count` pixels to float32 (C, count), written from `to` on.
void normalize(const std::uint8_t* pixels, std::size_t count, const Preprocess& preprocess,
               float* to);

}  // namespace vit_export
