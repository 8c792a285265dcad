// What the kernels of `lif` are given. Comes after ../element.h or ../device.h, which define its types.
#ifndef SNN_FR_LIF_ARGUMENTS_H
#define SNN_FR_LIF_ARGUMENTS_H

namespace snn_fr {

constexpr int CHUNK = 32;  // steps between checkpoints, as in compiled.py

// Field by field as in compiled.py. A pointer is null where there is nothing to read or to write.
struct Arguments {
    index steps, neurons;
    double v_reset, alpha;
    int charge, reset, period, integrate, inclusive, attached, kind, threads;  // threads: of the CPU
    index decay_values, threshold_values, magnitude_values;  // how many there are: neuron i has number i % values
    const io* x;
    const real *v0, *decay, *threshold, *magnitude;
    const int* refractory0;
    real* checkpoints;

    io* spikes;
    real *membrane, *charged, *v;
    unsigned char* is_open;
    int* refractory;

    const io* grad_spikes;
    const real *grad_membrane, *grad_charged, *grad_v;
    io* grad_x;
    real *grad_v0, *grad_decay, *grad_threshold, *grad_magnitude;
};

}  // namespace snn_fr

#endif
