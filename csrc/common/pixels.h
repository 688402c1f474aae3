// The pixels of images, one after the other.
#pragma once

#include <cstdint>

#include "inline.h"

namespace wuskern {

struct PixelPlace {
  int64_t image, y, x;
};

// Walks the pixels of [images, height, width], `step` apart, dividing at its start only.
struct PixelWalk {
  int64_t height, width;
  PixelPlace at, by;

  WUSKERN_HOST_DEVICE PixelWalk(int64_t height, int64_t width, int64_t start, int64_t step)
      : height(height), width(width), at(split(start)), by(split(step)) {}

  WUSKERN_HOST_DEVICE PixelPlace split(int64_t pixel) const {
    const int64_t line = pixel / width;
    return {line / height, line % height, pixel % width};
  }
  WUSKERN_HOST_DEVICE void advance() {
    at.x += by.x;
    at.y += by.y;
    at.image += by.image;
    if (at.x >= width) {
      at.x -= width;
      ++at.y;
    }
    if (at.y >= height) {
      at.y -= height;
      ++at.image;
    }
  }
};

}  // namespace wuskern
