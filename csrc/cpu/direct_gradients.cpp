// direct_wgrad and direct_dgrad: the two matrix products of unfold.h, dW^T = X^T P and dX = P W, with P made strip by
// strip in a cache and multiplied there, so that neither P nor a transposed x or dX goes through memory. float32 alone:
// in bfloat16 a library's product of P in memory is faster.
#include <memory>

#include "product_kernels.h"
#include "unfold.h"

namespace wuskern {
namespace {

constexpr int64_t kStripPixels = 192;       // of a strip: 4 tiles of registers; its P stays in L2
constexpr int64_t kBlock = 32;              // rows of the result that one scratch holds
constexpr int64_t kWide = 16;               // columns of the result come in so many
constexpr int64_t kPartialBytes = 1 << 25;  // of all partial sums
constexpr int64_t kParts = 64;              // and their number, at most: it may not depend on the number of threads

ProductKernels kernels() {
#define WUSKERN_PICK(NAME) \
  if (capability() == Capability::NAME) return NAME::product_kernels();
  WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_PICK)
#undef WUSKERN_PICK
  return baseline::product_kernels();
}

int64_t padded(int64_t size) { return ceil_div(size, kWide) * kWide; }

// The image, or several small ones, in strips of about kStripPixels. A strip is `images` tiles of one image each.
struct Strips {
  const Unfold& u;
  Tiling tiling;
  int64_t per_image, images, count;

  explicit Strips(const Unfold& u)
      : u(u),
        tiling(u, kStripPixels),
        per_image(tiling.per_image()),
        images(per_image > 1 ? 1 : std::max(int64_t{1}, (kStripPixels + u.pixels() / 2) / u.pixels())),
        count(per_image > 1 ? u.batch * per_image : ceil_div(u.batch, images)) {}

  // Calls body(tile, first pixel of the tile within the strip) for its tiles; gives the strip's pixels.
  template <typename Body>
  int64_t for_tiles(int64_t strip, Body&& body) const {
    const int64_t first = strip / per_image * images, last = std::min(first + images, u.batch);
    int64_t pixels = 0;
    for (int64_t image = first; image < last; ++image) {
      const Tile tile = tiling.tile(u, image, strip % per_image);
      body(tile, pixels);
      pixels += tile.pixels();
    }
    return pixels;
  }

  int64_t pixels() const { return tiling.tile(u, 0, 0).pixels() * images; }
};

// What a thread has for one strip at a time: a tile of dY, the strip's P, and what goes with it.
struct Scratch {
  const std::unique_ptr<float[]> tile, p, more;
};

// ---- dX[pixel, channel] = P[pixel, (tap, row)] W[(tap, row), channel] ----------------------------------------------

struct Dgrad {
  const Strips& strips;
  const float *dy, *weight;
  int64_t channels;
  float* out;
};

// Contiguous images: the product is dX^T = W^T P^T, whose rows are channels. weight: [channels, columns of P].
void dgrad_planes(const Dgrad& d, int64_t strip, const Scratch& scratch) {
  const Unfold& u = d.strips.u;
  const ProductKernels kernel = kernels();
  const int64_t step = padded(d.strips.pixels()), depth = u.columns();
  float *const p = scratch.p.get(), *const block = scratch.more.get();
  const int64_t pixels = d.strips.for_tiles(strip, [&](const Tile& tile, int64_t pixel) {
    unfold_pixels_last(u, d.dy, tile, scratch.tile.get(), p + pixel, step, tile.columns);
  });
  for (int64_t c = 0; c < d.channels; c += kBlock) {
    const int64_t rows = std::min(kBlock, d.channels - c);
    kernel.multiply({rows, padded(pixels), depth, d.weight + c * depth, depth, 1, p, step, block, step, false});
    d.strips.for_tiles(strip, [&](const Tile& tile, int64_t pixel) {
      float* const plane =
          d.out + (tile.image * d.channels + c) * u.pixels() + tile.first_row * u.width + tile.first_column;
      for (int64_t i = 0; i < rows; ++i) {
        memcpy(plane + i * u.pixels(), block + i * step + pixel, tile.pixels() * sizeof(float));
      }
    });
  }
}

// channels_last: the rows of dX are pixels. weight: [columns of P, channels padded].
void dgrad_rows(const Dgrad& d, int64_t strip, const Scratch& scratch) {
  const Unfold& u = d.strips.u;
  const ProductKernels kernel = kernels();
  const int64_t depth = u.columns(), step = padded(d.channels);
  float *const p = scratch.p.get(), *const block = scratch.more.get();
  int64_t first = -1;
  const int64_t pixels = d.strips.for_tiles(strip, [&](const Tile& tile, int64_t pixel) {
    unfold_pixels_first(u, d.dy, tile, scratch.tile.get(), p + pixel * depth, depth);
    if (first < 0) first = tile.image * u.pixels() + tile.first_row * u.width + tile.first_column;
  });
  for (int64_t i = 0; i < pixels; i += kBlock) {
    const int64_t rows = std::min(kBlock, pixels - i);
    kernel.multiply({rows, step, depth, p + i * depth, depth, 1, d.weight, step, block, step, false});
    for (int64_t j = 0; j < rows; ++j) {
      memcpy(d.out + (first + i + j) * d.channels, block + j * step, d.channels * sizeof(float));
    }
  }
}

void dgrad(const Dgrad& d, bool channels_last) {
  const Unfold& u = d.strips.u;
  const int64_t pixels = padded(d.strips.pixels());
  torch::stable::parallel_for(0, d.strips.count, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch{std::unique_ptr<float[]>(new float[d.strips.tiling.scratch(u)]),
                          std::unique_ptr<float[]>(new float[pixels * u.columns()]),
                          std::unique_ptr<float[]>(new float[kBlock * std::max(pixels, padded(d.channels))])};
    for (int64_t strip = begin; strip < end; ++strip) (channels_last ? dgrad_rows : dgrad_planes)(d, strip, scratch);
  });
}

// ---- dW^T[channel, (tap, row)] = the sum over pixels of X[pixel, channel] P[pixel, (tap, row)] ---------------------

// x, and the elements between its channels, pixels, images.
struct Input {
  const float* data;
  int64_t channels, channel_step, pixel_step, image_step;
};

struct Wgrad {
  const Strips& strips;
  const float* dy;
  Input x;
};

void add_strip(const Wgrad& w, int64_t strip, const Scratch& scratch, float* sums, bool adding) {
  const Unfold& u = w.strips.u;
  const Input& x = w.x;
  const int64_t step = padded(u.columns()), room = w.strips.pixels();
  const bool in_place = w.strips.images == 1 || x.channel_step == 1;
  float *const p = scratch.p.get(), *const copy = scratch.more.get();
  const float* first = nullptr;
  const int64_t pixels = w.strips.for_tiles(strip, [&](const Tile& tile, int64_t pixel) {
    unfold_pixels_first(u, w.dy, tile, scratch.tile.get(), p + pixel * step, step);
    const int64_t offset = tile.first_row * u.width + tile.first_column;
    const float* const from = x.data + tile.image * x.image_step + offset * x.pixel_step;
    if (first == nullptr) first = from;
    if (in_place) return;
    for (int64_t c = 0; c < x.channels; ++c) {
      memcpy(copy + c * room + pixel, from + c * x.channel_step, tile.pixels() * sizeof(float));
    }
  });
  kernels().multiply({x.channels, step, pixels, in_place ? first : copy, in_place ? x.channel_step : room,
                      in_place ? x.pixel_step : 1, p, step, sums, step, adding});
}

// out: [channels, columns of P], the sum of partial sums in a fixed order
void wgrad(const Wgrad& w, float* out) {
  const Unfold& u = w.strips.u;
  const int64_t channels = w.x.channels, columns = u.columns(), step = padded(columns), size = channels * step;
  const int64_t most = std::clamp(kPartialBytes / (size * int64_t{sizeof(float)}), int64_t{1}, kParts);
  const Chunks parts{w.strips.count, ceil_div(w.strips.count, most)};
  const std::unique_ptr<float[]> sums(new float[parts.count() * size]);
  torch::stable::parallel_for(0, parts.count(), 1, [&](int64_t begin, int64_t end) {
    const int64_t pixels = w.strips.pixels();
    const Scratch scratch{std::unique_ptr<float[]>(new float[w.strips.tiling.scratch(u)]),
                          std::unique_ptr<float[]>(new float[pixels * step]()),
                          std::unique_ptr<float[]>(new float[pixels * channels])};
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t strip = parts.begin(part); strip < parts.end(part); ++strip) {
        add_strip(w, strip, scratch, sums.get() + part * size, strip > parts.begin(part));
      }
    }
  });
  torch::stable::parallel_for(0, channels, ceil_div(65536, parts.count() * step), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      float* const target = out + c * columns;
      memcpy(target, sums.get() + c * step, columns * sizeof(float));
      for (int64_t part = 1; part < parts.count(); ++part) {
        const float* const from = sums.get() + part * size + c * step;
        for (int64_t j = 0; j < columns; ++j) target[j] += from[j];
      }
    }
  });
}

// ---- ops -----------------------------------------------------------------------------------------------------------

Tensor direct_wgrad(Tensor dy, Tensor x, Pair kernel_size, Pair padding, Pair dilation, bool channels_last) {
  check_float(dy, x, "x");
  check_rank(dy, "dy", 4);
  check_rank(x, "x", 4);
  check_batch(x, "x", dy);
  const Unfold u = checked_unfold(dy, {x.size(2), x.size(3)}, {kernel_size, {1, 1}, padding, dilation});
  check_format(x, "x", channels_last);
  const int64_t channels = x.size(1), pixels = u.pixels();
  Tensor out = new_tensor(dy, {channels, u.columns()});
  if (dy.numel() == 0 || x.numel() == 0) return torch::stable::zero_(out);
  const float* const data = const_data_of<float>(x);
  const Input input = channels_last || pixels == 1 ? Input{data, channels, 1, channels, channels * pixels}
                                                   : Input{data, channels, pixels, 1, channels * pixels};
  wgrad({Strips(u), const_data_of<float>(dy), input}, data_of<float>(out));
  return out;
}

// weight: [channels, columns of P]; for channels_last [columns of P, channels rounded up to 16]; float32, contiguous.
void direct_dgrad(Tensor dy, Tensor weight, Pair kernel_size, Pair padding, Pair dilation, bool channels_last,
                  Tensor out) {
  check_float(dy, weight, "weight");
  check_like(out, "out", dy);
  check_rank(dy, "dy", 4);
  check_rank(out, "out", 4);
  check_batch(out, "out", dy);
  const Unfold u = checked_unfold(dy, {out.size(2), out.size(3)}, {kernel_size, {1, 1}, padding, dilation});
  const int64_t channels = out.size(1);
  check_contiguous(weight, "weight");
  check_sizes(weight, "weight", channels_last ? Pair{u.columns(), padded(channels)} : Pair{channels, u.columns()});
  check_format(out, "out", channels_last);
  check_apart(dy, "dy", out, "out");
  check_apart(weight, "weight", out, "out");
  if (out.numel() == 0) return;
  if (dy.numel() == 0) return static_cast<void>(torch::stable::zero_(out));
  dgrad({Strips(u), const_data_of<float>(dy), const_data_of<float>(weight), channels, data_of<float>(out)},
        channels_last);
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) {
  m.impl("direct_wgrad", TORCH_BOX(&wuskern::direct_wgrad));
  m.impl("direct_dgrad", TORCH_BOX(&wuskern::direct_dgrad));
}
