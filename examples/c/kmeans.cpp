// kmeans.cpp - smm.h from C++ (11 or newer): soft K-Means of points of two clusters. Structs begin
// as zeros ({}) and are filled by name: C++ has no initialisers by name before C++20.
#include "smm.h"

#include <cstdio>
#include <vector>

int main() {
    const std::vector<float> points = {0, 0, 5, 5, 0, 1, 5, 6, 1, 0, 6, 5};
    const std::vector<int64_t> starts = {0, 1};
    std::vector<float> centres(4);

    smm_config config;
    smm_config_init(&config, SMM_KMEANS, 2);
    config.scale = 10;
    config.eps = 0;
    const smm_dims dims = {1, points.size() / 2, starts.size(), 10};
    smm_inputs_f32 in{};
    in.x = points.data();
    in.indices = starts.data();
    smm_outputs_f32 out{};
    out.slots = centres.data();
    const smm_status status =
        smm_forward_f32(&config, &dims, nullptr, &in, &out, nullptr, nullptr);
    if (status != SMM_OK) {
        std::puts(smm_status_str(status));
        return 1;
    }
    for (std::size_t k = 0; k < starts.size(); k++)
        std::printf("centre (%.2f, %.2f)\n", centres[2 * k], centres[2 * k + 1]);
}
