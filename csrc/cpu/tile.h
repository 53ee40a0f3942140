// Walks (outer, inner) in tiles that fit the L1 cache. A tile is read through a pointer into the tensor where
// its elements are contiguous and of the arithmetic type, else through a converted copy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/operand.h"
#include "cpu/row.h"

namespace flowops {

inline constexpr int64_t kTileSize = 512;
// Rows at least this long make tiles of their own; shorter ones are gathered into one tile.
inline constexpr int64_t kLongRow = 64;
// Tiles of one partial sum: a fixed split, so that results do not depend on the number of threads.
inline constexpr int64_t kTilesPerChunk = 32;

struct Tile {
  int64_t batch, outer, inner, rows, columns;
  int64_t size() const { return rows * columns; }
};

class TileGrid {
 public:
  TileGrid(int64_t outer, int64_t inner)
      : outer_(outer),
        inner_(inner),
        rows_(inner >= kLongRow ? 1 : std::max<int64_t>(1, kTileSize / std::max<int64_t>(inner, 1))),
        per_row_(std::max<int64_t>(1, (inner + kTileSize - 1) / kTileSize)),
        tiles_(inner == 0 ? 0 : (outer + rows_ - 1) / rows_ * per_row_) {}

  int64_t chunks() const { return std::max<int64_t>(1, (tiles_ + kTilesPerChunk - 1) / kTilesPerChunk); }

  bool single_row() const { return outer_ == 1; }

  Tile tile(int64_t batch, int64_t index) const {
    const int64_t outer = index / per_row_ * rows_, inner = index % per_row_ * kTileSize;
    return {batch, outer, inner, std::min(rows_, outer_ - outer), std::min(kTileSize, inner_ - inner)};
  }

  // Calls body(tile) for the tiles of a chunk of a sample in order.
  template <typename Body>
  void for_each(int64_t batch, int64_t chunk, const Body& body) const {
    const int64_t first = chunk * kTilesPerChunk;
    int64_t left = std::min(tiles_ - first, kTilesPerChunk);
    for (Tile t = tile(batch, first); left > 0; --left, t = after(t)) body(t);
  }

 private:
  // The next tile, without the divisions of tile(): they take as long as the arithmetic of a short one.
  Tile after(const Tile& t) const {
    const int64_t right = t.inner + kTileSize;
    if (right < inner_) return {t.batch, t.outer, right, t.rows, std::min(kTileSize, inner_ - right)};
    const int64_t below = t.outer + rows_;
    return {t.batch, below, 0, std::min(rows_, outer_ - below), std::min(kTileSize, inner_)};
  }

  int64_t outer_, inner_, rows_, per_row_, tiles_;
};

template <typename scalar_t>
scalar_t* tile_start(const Operand& a, const Tile& t) {
  return static_cast<scalar_t*>(a.data) + t.batch * a.batch + t.outer * a.outer + t.inner * a.inner;
}

template <typename scalar_t, typename opmath_t>
bool is_direct(const Operand& a, const Tile& t) {
  return std::is_same_v<scalar_t, opmath_t> && t.rows == 1 && a.inner == 1;
}

template <typename scalar_t, typename opmath_t>
const opmath_t* load_tile(const Operand& a, const Tile& t, opmath_t* buffer) {
  const scalar_t* source = tile_start<const scalar_t>(a, t);
  if constexpr (std::is_same_v<scalar_t, opmath_t>) {
    if (is_direct<scalar_t, opmath_t>(a, t)) return source;
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    const scalar_t* row = source + r * a.outer;
    opmath_t* out = buffer + r * t.columns;
    if (a.inner == 1) {
      load_row(row, out, t.columns);
    } else {
      for (int64_t c = 0; c < t.columns; ++c) out[c] = static_cast<opmath_t>(row[c * a.inner]);
    }
  }
  return buffer;
}

// Where to write a tile: into the tensor, or into the buffer that store_tile then converts.
template <typename scalar_t, typename opmath_t>
opmath_t* output_tile(const Operand& a, const Tile& t, opmath_t* buffer) {
  if constexpr (std::is_same_v<scalar_t, opmath_t>) {
    if (is_direct<scalar_t, opmath_t>(a, t)) return tile_start<scalar_t>(a, t);
  }
  return buffer;
}

template <typename scalar_t, typename opmath_t>
void store_tile(const Operand& a, const Tile& t, const opmath_t* buffer) {
  if (is_direct<scalar_t, opmath_t>(a, t)) return;
  scalar_t* target = tile_start<scalar_t>(a, t);
  for (int64_t r = 0; r < t.rows; ++r) {
    scalar_t* row = target + r * a.outer;
    const opmath_t* in = buffer + r * t.columns;
    if (a.inner == 1) {
      store_row(in, row, t.columns);
    } else {
      for (int64_t c = 0; c < t.columns; ++c) row[c * a.inner] = static_cast<scalar_t>(in[c]);
    }
  }
}

}  // namespace flowops
