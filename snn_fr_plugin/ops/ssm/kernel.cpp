// `diagonal_ssm` on the CPU. Threads share out tiles of WIDTH columns. A tile goes through time in blocks of BLOCK
// steps, whose rows are copied into the first-level cache, pair by pair (see vectors.h). Forward writes the states before
// every block but the first; backward goes through the blocks from the last and replays each from there.
#include <cstddef>
#include <new>

#include "../pages.h"
#include "vectors.h"

namespace snn_fr {
namespace {

constexpr index LINE = 256;                              // as in cpp_provider.py
constexpr index PANEL = 16;                              // tiles of which a thread reads and writes a row together
constexpr index PANEL_BYTES = index(1) << 19;            // of gradient sums that a panel may have, to stay in cache
constexpr std::size_t KEPT_BYTES = std::size_t(4) << 20;  // of tables, between calls
constexpr index PER_THREAD = 200000;                     // states advanced below which another thread does not pay

// Field by field as in cpp_provider.py. Complex numbers are interleaved. A pointer is null where there is nothing to
// read or to write.
struct Arguments {
    index steps, batch, channels, pairs, threads;
    const io* x;
    const real *A, *C, *D, *state;
    real* checkpoints;

    io* y;
    real* last;

    const io* grad_y;
    const real* grad_last;
    io* grad_x;
    real *grad_A, *grad_C, *grad_D, *grad_state;
};

template <typename vector>
inline auto& lane(vector& v, int i)
{
    return reinterpret_cast<decltype(v[0] + 0)*>(&v)[i];
}

// How columns make tiles. Short rows of channels are strung together, batch entry by batch entry; long ones, at whose
// end idle lanes do not matter, keep tiles of their own. Tiles `kinds` apart have the same channels in the same lanes.
struct Tiling {
    index channels, line, per_line, tiles, kinds;

    explicit Tiling(const Arguments& a) : channels(a.channels)
    {
        const index columns = a.batch * channels;
        line = channels < LINE ? columns : channels;
        per_line = (line + WIDTH - 1) / WIDTH;
        tiles = line ? columns / line * per_line : 0;
        kinds = per_line;
        if (channels < LINE) {
            index period = channels;  // becomes channels / gcd(channels, WIDTH)
            for (int width = WIDTH; width > 1 && period % 2 == 0; width /= 2) period /= 2;
            if (period < kinds) kinds = period;
        }
    }
    index first(index tile) const { return tile / per_line * line + tile % per_line * WIDTH; }
    int columns(index tile) const
    {
        const index rest = line - tile % per_line * WIDTH;
        return int(rest < WIDTH ? rest : WIDTH);
    }
    index kind(index tile) const { return tile % kinds; }
    index channel(index kind, int lane) const { return (kind * WIDTH + lane) % channels; }
};

// Memory that a thread keeps between calls.
class Buffer {
public:
    static constexpr std::size_t PAGE = 4096;

    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { release(); }
    char* reserve(std::size_t bytes)
    {
        if (bytes > size) {
            release();
            start = static_cast<char*>(::operator new(bytes, std::align_val_t(PAGE)));
            size = bytes;
        }
        return start;
    }
    void keep(std::size_t most)
    {
        if (size > most) release();
    }

private:
    void release()
    {
        if (start) ::operator delete(start, std::align_val_t(PAGE));
        start = nullptr, size = 0;
    }
    char* start = nullptr;
    std::size_t size = 0;
};
thread_local Buffer tables, scratch;

// The constants of every kind of tile.
struct Table {
    vec* taps;
    Pair* pairs;
};

template <typename complex>
complex constants(const Arguments& a, const Tiling& tiling, index kind, const real* from, index m)
{
    complex to;
    for (int l = 0; l < WIDTH; ++l) {
        const real* at = from + 2 * (tiling.channel(kind, l) * a.pairs + m);
        lane(to.re, l) = at[0], lane(to.im, l) = at[1];
    }
    return to;
}

void tabulate_kind(const Arguments& a, const Tiling& tiling, index kind, const Table& table)
{
    wide taps[GROUP] = {};
    for (index m = 0; m < a.pairs; ++m)
        tabulate(constants<WideComplex>(a, tiling, kind, a.A, m), constants<WideComplex>(a, tiling, kind, a.C, m),
                 table.pairs[kind * a.pairs + m], taps);
    if (a.D)
        for (int l = 0; l < WIDTH; ++l) lane(taps[0], l) += a.D[tiling.channel(kind, l)];
    for (int j = 0; j < GROUP; ++j) table.taps[kind * GROUP + j] = rounded(taps[j]);
}

// ---- panels: neighbouring tiles, whose rows a thread brings in and out together

// Where the rows of a block lie: a load that agrees with a store still under way in the lowest 12 bits of its address
// waits for it, so what is stored lies half a page from what is loaded.
constexpr std::size_t at_phase(std::size_t end, std::size_t phase)
{
    return end + (phase + Buffer::PAGE - end % Buffer::PAGE) % Buffer::PAGE;
}
constexpr std::size_t ROWS = BLOCK * BYTES;
constexpr std::size_t OUT_AT = at_phase(ROWS, 2048);
constexpr std::size_t GIVEN_AT = at_phase(OUT_AT + ROWS, 0);
constexpr std::size_t TILE_BYTES = at_phase(GIVEN_AT + ROWS, 0);
constexpr std::size_t BEFORE_AT = 3072;
constexpr std::size_t BEFORE_BYTES = at_phase(BEFORE_AT + (BLOCK / GROUP + GROUP) * sizeof(Complex), 0);

struct Tile {
    index number, first;
    int columns;
    const vec* taps;
    const Pair* pairs;
    Complex* states;        // forward h, backward dL/dh
    vec *in, *out, *given;  // rows of a block
    Sums* sums;
    vec taps_sums[GROUP];   // dL/dK_l
};

struct Panel {
    int size;
    Tile tiles[PANEL];
    Complex *before, *entry;  // of one tile: the states before each group of a block, and before the first block
};

Panel open_panel(const Arguments& a, const Tiling& tiling, const Table& table, index begin, index end, bool backward)
{
    const std::size_t states = a.pairs * sizeof(Complex), sums = backward ? a.pairs * sizeof(Sums) : 0;
    Panel panel;
    panel.size = int(end - begin);
    char* memory = scratch.reserve(BEFORE_BYTES + panel.size * (TILE_BYTES + states + sums) + states);
    panel.before = reinterpret_cast<Complex*>(memory + BEFORE_AT);
    memory += BEFORE_BYTES;
    for (int i = 0; i < panel.size; ++i, memory += TILE_BYTES) {
        Tile& tile = panel.tiles[i];
        tile.number = begin + i;
        tile.first = tiling.first(tile.number);
        tile.columns = tiling.columns(tile.number);
        const index kind = tiling.kind(tile.number);
        tile.taps = table.taps + kind * GROUP;
        tile.pairs = table.pairs + kind * a.pairs;
        tile.in = reinterpret_cast<vec*>(memory);
        tile.out = reinterpret_cast<vec*>(memory + OUT_AT);
        tile.given = reinterpret_cast<vec*>(memory + GIVEN_AT);
        // idle lanes stay zero, and so do cotangents that are not given
        std::memset(tile.in, 0, ROWS);
        std::memset(tile.given, 0, ROWS);
        for (vec& sum : tile.taps_sums) sum = vec{};
    }
    for (int i = 0; i < panel.size; ++i, memory += states) panel.tiles[i].states = reinterpret_cast<Complex*>(memory);
    for (int i = 0; i < panel.size; ++i, memory += sums) {
        std::memset(memory, 0, sums);
        panel.tiles[i].sums = reinterpret_cast<Sums*>(memory);
    }
    panel.entry = reinterpret_cast<Complex*>(memory);
    return panel;
}

void load_states(const Arguments& a, const Tile& tile, const real* from, Complex* to)
{
    for (index m = 0; m < a.pairs; ++m) to[m] = {vec{}, vec{}};
    if (!from) return;
    for (int l = 0; l < tile.columns; ++l) {
        const real* column = from + (tile.first + l) * a.pairs * 2;
        for (index m = 0; m < a.pairs; ++m) lane(to[m].re, l) = column[2 * m], lane(to[m].im, l) = column[2 * m + 1];
    }
}

void store_states(const Arguments& a, const Tile& tile, real* to)
{
    for (int l = 0; l < tile.columns; ++l) {
        real* column = to + (tile.first + l) * a.pairs * 2;
        for (index m = 0; m < a.pairs; ++m)
            column[2 * m] = lane(tile.states[m].re, l), column[2 * m + 1] = lane(tile.states[m].im, l);
    }
}

SNN_FR_PAIR void load_row(const io* from, vec& to, int columns)
{
    real* lanes = reinterpret_cast<real*>(&to);
    const real* row = read_row(from, lanes, columns);
    if (row != lanes) std::memcpy(lanes, row, columns * sizeof(real));
}

void load_rows(const Arguments& a, const Panel& panel, const io* from, vec* Tile::*to, index start, int count)
{
    for (int j = 0; j < count; ++j)
        for (int i = 0; i < panel.size; ++i) {
            const Tile& tile = panel.tiles[i];
            const io* row = from + (start + j) * a.batch * a.channels + tile.first;
            if (tile.columns == WIDTH)  // a length known to the compiler
                load_row(row, (tile.*to)[j], WIDTH);
            else
                load_row(row, (tile.*to)[j], tile.columns);
        }
}

void store_rows(const Arguments& a, const Panel& panel, io* to, index start, int count, bool stream)
{
    for (int j = 0; j < count; ++j)
        for (int i = 0; i < panel.size; ++i) {
            const Tile& tile = panel.tiles[i];
            io* row = to + (start + j) * a.batch * a.channels + tile.first;
            const real* lanes = reinterpret_cast<const real*>(tile.out + j);
            if (tile.columns == WIDTH)
                end_row(row, lanes, WIDTH, stream);
            else
                end_row(row, lanes, tile.columns, stream);
        }
}

// The rows of the block at `start`, which comes next: a share of them with every pair.
SNN_FR_PAIR void prefetch(const Arguments& a, const Tile& tile, const io* from, index start, index m)
{
    if (!from || start < 0) return;
    const index end = start + (m + 1) * BLOCK / a.pairs;
    for (index t = start + m * BLOCK / a.pairs; t < end && t < a.steps; ++t)
        __builtin_prefetch(from + t * a.batch * a.channels + tile.first, 0, 2);
}

// ---- blocks of a tile

void forward_block(const Arguments& a, const Tile& tile, index start, int count)
{
    const int groups = count / GROUP, grouped = groups * GROUP, rest = count - grouped;
    vec *x = tile.in, *y = tile.out;
    for (int t = 0; t < count; ++t) {
        const int earlier = t < grouped ? t % GROUP : 0;
        y[t] = tile.taps[0] * x[t];
        for (int l = 1; l <= earlier; ++l) y[t] += tile.taps[l] * x[t - l];
    }
    for (index m = 0; m < a.pairs; ++m) {
        prefetch(a, tile, a.x, start + BLOCK, m);
        const Pair& pair = tile.pairs[m];
        Complex& h = tile.states[m];
        advance<GROUP>(pair, groups, x, h, y);
        if (rest) advance<1>(pair, rest, x + grouped, h, y + grouped);
        if (count == BLOCK) add(h, times(pair.drift, h));
    }
}

// `entry`: the states before the block.
void backward_block(const Arguments& a, Tile& tile, const Complex* entry, Complex* before, index start, int count)
{
    const int groups = count / GROUP, grouped = groups * GROUP, rest = count - grouped;
    const vec *x = tile.in, *given = tile.given;
    vec* grad_x = tile.out;
    for (int t = 0; t < count; ++t) {
        const int later = t < grouped ? GROUP - 1 - t % GROUP : 0;
        grad_x[t] = tile.taps[0] * given[t];
        tile.taps_sums[0] += given[t] * x[t];
        for (int l = 1; l <= later; ++l) {
            grad_x[t] += tile.taps[l] * given[t + l];
            tile.taps_sums[l] += given[t + l] * x[t];
        }
    }
    for (index m = 0; m < a.pairs; ++m) {
        prefetch(a, tile, a.x, start - BLOCK, m);
        prefetch(a, tile, a.grad_y, start - BLOCK, m);
        const Pair& pair = tile.pairs[m];
        Sums& sums = tile.sums[m];
        Complex h = entry[m], &q = tile.states[m];
        replay<GROUP>(pair, groups, x, given, h, before, sums);
        if (rest) {
            replay<1>(pair, rest, x + grouped, given + grouped, h, before + groups, sums);
            retreat<1>(pair, rest, x + grouped, given + grouped, before + groups, q, grad_x + grouped, sums);
        }
        if (count == BLOCK) add(q, back(pair.drift, q));
        retreat<GROUP>(pair, groups, x, given, before, q, grad_x, sums);
    }
}

// ---- forward

Complex* checkpoint(const Arguments& a, const Tiling& tiling, index start, index tile)
{
    return reinterpret_cast<Complex*>(a.checkpoints) + ((start / BLOCK - 1) * tiling.tiles + tile) * a.pairs;
}

int rows_from(const Arguments& a, index start) { return int(a.steps - start < BLOCK ? a.steps - start : BLOCK); }

void forward_panel(const Arguments& a, const Tiling& tiling, const Table& table, index begin, index end, bool stream)
{
    Panel panel = open_panel(a, tiling, table, begin, end, false);
    for (int i = 0; i < panel.size; ++i) load_states(a, panel.tiles[i], a.state, panel.tiles[i].states);
    for (index start = 0; start < a.steps; start += BLOCK) {
        const int count = rows_from(a, start);
        load_rows(a, panel, a.x, &Tile::in, start, count);
        for (int i = 0; i < panel.size; ++i) {
            const Tile& tile = panel.tiles[i];
            if (a.checkpoints && start > 0)
                copy_bytes(checkpoint(a, tiling, start, tile.number), tile.states, a.pairs * sizeof(Complex), stream);
            forward_block(a, tile, start, count);
        }
        store_rows(a, panel, a.y, start, count, stream);
    }
    for (int i = 0; i < panel.size; ++i) store_states(a, panel.tiles[i], a.last);
    if (stream) finish_streaming();
}

constexpr int LANES = 16;

SNN_FR_PAIR void step_pairs(int count, const real* __restrict A, const real* __restrict C, real x,
                                     real* __restrict h, real* __restrict sums)
{
    for (int i = 0; i < count; ++i) {
        const real re = A[2 * i] * h[2 * i] - A[2 * i + 1] * h[2 * i + 1] + x;
        const real im = A[2 * i] * h[2 * i + 1] + A[2 * i + 1] * h[2 * i];
        h[2 * i] = re, h[2 * i + 1] = im;
        sums[i] += C[2 * i] * re - C[2 * i + 1] * im;
    }
}

// A few steps of a column without the tables, which they would not repay.
void forward_column(const Arguments& a, index column)
{
    const index channel = column % a.channels, size = 2 * a.pairs;
    const real *A = a.A + channel * size, *C = a.C + channel * size;
    real* h = a.last + column * size;
    if (a.state)
        std::memcpy(h, a.state + column * size, size * sizeof(real));
    else
        std::memset(h, 0, size * sizeof(real));
    for (index t = 0; t < a.steps; ++t) {
        const index at = t * a.batch * a.channels + column;
        real buffer, sums[LANES] = {};
        const real x = *read_row(a.x + at, &buffer, 1);
        index m = 0;
        for (; m + LANES <= a.pairs; m += LANES) step_pairs(LANES, A + 2 * m, C + 2 * m, x, h + 2 * m, sums);
        step_pairs(int(a.pairs - m), A + 2 * m, C + 2 * m, x, h + 2 * m, sums);
        real y = a.D ? a.D[channel] * x : real(0);
        for (int i = 0; i < LANES; ++i) y += sums[i];
        end_row(a.y + at, &y, 1, false);
    }
}

// ---- backward

// Gradients of the constants of every column, tile by tile: A and C of each pair, then D.
struct Gradients {
    vec* start;
    index each;

    vec* of(index tile) const { return start + tile * each; }
};

void backward_panel(const Arguments& a, const Tiling& tiling, const Table& table, index begin, index end, bool stream,
                    const Gradients& gradients)
{
    Panel panel = open_panel(a, tiling, table, begin, end, true);
    for (int i = 0; i < panel.size; ++i) load_states(a, panel.tiles[i], a.grad_last, panel.tiles[i].states);
    for (index start = (a.steps + BLOCK - 1) / BLOCK * BLOCK - BLOCK; start >= 0; start -= BLOCK) {
        const int count = rows_from(a, start);
        load_rows(a, panel, a.x, &Tile::in, start, count);
        if (a.grad_y) load_rows(a, panel, a.grad_y, &Tile::given, start, count);
        for (int i = 0; i < panel.size; ++i) {
            Tile& tile = panel.tiles[i];
            if (start == 0) load_states(a, tile, a.state, panel.entry);
            const Complex* entry = start ? checkpoint(a, tiling, start, tile.number) : panel.entry;
            backward_block(a, tile, entry, panel.before, start, count);
        }
        store_rows(a, panel, a.grad_x, start, count, stream);
    }
    for (int i = 0; i < panel.size; ++i) {
        const Tile& tile = panel.tiles[i];
        if (a.grad_state) store_states(a, tile, a.grad_state);
        vec* of_tile = gradients.of(tile.number);
        for (index m = 0; m < a.pairs; ++m) {
            Complex* pair = reinterpret_cast<Complex*>(of_tile + 4 * m);
            const Complex C = constants<Complex>(a, tiling, tiling.kind(tile.number), a.C, m);
            differentiate(tile.pairs[m], tile.sums[m], tile.taps_sums, C, pair[0], pair[1]);
        }
        of_tile[4 * a.pairs] = tile.taps_sums[0];
    }
    if (stream) finish_streaming();
}

// Sums over the tiles of a kind into the first of them; like the next, always in the same order.
void reduce_tiles(const Tiling& tiling, index kind, const Gradients& gradients)
{
    for (index i = 0; i < gradients.each; ++i) {
        wide sum = {};
        for (index tile = kind; tile < tiling.tiles; tile += tiling.kinds)
            sum += widened(gradients.of(tile)[i]);
        gradients.of(kind)[i] = rounded(sum);
    }
}

// Sums over the lanes of a channel.
void reduce_lanes(const Arguments& a, const Tiling& tiling, index channel, const Gradients& gradients)
{
    for (index i = 0; i < gradients.each; ++i) {
        real sum = 0;
        for (index at = channel; at < tiling.kinds * WIDTH; at += a.channels)
            sum += lane(gradients.of(at / WIDTH)[i], int(at % WIDTH));
        real* const matrix = i % 4 < 2 ? a.grad_A : a.grad_C;
        if (i < 4 * a.pairs)
            matrix[2 * (channel * a.pairs + i / 4) + i % 2] = sum;
        else if (a.grad_D)
            a.grad_D[channel] = sum;
    }
}

// ---- calls

void run(const Arguments& a, bool backward)
{
    const Tiling tiling(a);
    const index columns = a.batch * a.channels, elements = a.steps * columns;
    const index useful = 1 + elements * a.pairs / PER_THREAD, threads = a.threads < useful ? a.threads : useful;
    if (!backward && a.steps < GROUP) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(threads)) if (threads > 1)
#endif
        for (index c = 0; c < columns; ++c) forward_column(a, c);
        return;
    }
    // as many panels for every thread
    index most = PANEL_BYTES / ((a.pairs + 1) * index(sizeof(Sums)));
    most = most < 1 ? 1 : most < PANEL ? most : PANEL;
    const index panels = (tiling.tiles + most * threads - 1) / (most * threads) * threads;
    const index size = panels ? (tiling.tiles + panels - 1) / panels : 0;

    const index each = 4 * a.pairs + 1;
    const std::size_t gradients_bytes = backward ? tiling.tiles * each * sizeof(vec) : 0;
    const std::size_t taps_bytes = tiling.kinds * GROUP * sizeof(vec);
    char* memory = tables.reserve(gradients_bytes + taps_bytes + tiling.kinds * a.pairs * sizeof(Pair));
    const Gradients gradients{reinterpret_cast<vec*>(memory), each};
    const Table table{reinterpret_cast<vec*>(memory + gradients_bytes),
                      reinterpret_cast<Pair*>(memory + gradients_bytes + taps_bytes)};

    const bool stream = elements * index(sizeof(io)) >= STREAM_FROM;
    expect_writes(backward ? a.grad_x : a.y, elements * sizeof(io));
    if (!backward && a.checkpoints)
        expect_writes(a.checkpoints, (a.steps - 1) / BLOCK * tiling.tiles * a.pairs * sizeof(Complex));
#ifdef _OPENMP
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
#endif
    {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (index kind = 0; kind < tiling.kinds; ++kind) tabulate_kind(a, tiling, kind, table);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (index i = 0; i < panels; ++i) {
            const index begin = i * size, end = begin + size < tiling.tiles ? begin + size : tiling.tiles;
            if (begin >= end) continue;
            if (backward)
                backward_panel(a, tiling, table, begin, end, stream, gradients);
            else
                forward_panel(a, tiling, table, begin, end, stream);
        }
        if (backward) {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
            for (index kind = 0; kind < tiling.kinds; ++kind) reduce_tiles(tiling, kind, gradients);
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
            for (index c = 0; c < a.channels; ++c) reduce_lanes(a, tiling, c, gradients);
        }
    }
    tables.keep(KEPT_BYTES);
}

}  // namespace
}  // namespace snn_fr

extern "C" void snn_fr_ssm_forward(const snn_fr::Arguments* a) { snn_fr::run(*a, false); }
extern "C" void snn_fr_ssm_backward(const snn_fr::Arguments* a) { snn_fr::run(*a, true); }
