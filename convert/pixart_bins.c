/* The sizes that PixArt models were trained with. Their pipeline paints the one whose ratio is
 * nearest to that of the size asked for (diffusers' ASPECT_RATIO_1024_BIN, and halves and quarters
 * of it for the models of 512 and 256 pixels). */
#include "arch.h"

#include <stdio.h>

static const short sizes[][2] = {
    /* height, width */
    {512, 2048}, {512, 1856}, {576, 1792}, {576, 1728}, {576, 1664},  {640, 1600}, {640, 1536},
    {704, 1472}, {704, 1408}, {704, 1344}, {768, 1344}, {768, 1280},  {832, 1216}, {832, 1152},
    {896, 1152}, {896, 1088}, {960, 1088}, {960, 1024}, {1024, 1024}, {1024, 960}, {1088, 960},
    {1088, 896}, {1152, 896}, {1152, 832}, {1216, 832}, {1280, 768},  {1344, 768}, {1408, 704},
    {1472, 704}, {1536, 640}, {1600, 640}, {1728, 576}, {2048, 512},
};

void dpk_arch_pixart_bins(struct dpk_builder *b, int side) {
    enum { N = sizeof sizes / sizeof *sizes, ROOM = 24 };
    char text[N * ROOM + 1] = "";
    size_t n = 0;
    if (side != 1024 && side != 512 && side != 256) return;
    for (int i = 0; i < N; i++) {
        /* Sizes are chosen by ratios of two decimals: a tie or a neighbour may depend on it. */
        const int hundredths = (200 * sizes[i][0] / sizes[i][1] + 1) / 2;
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%d.%02d:%dx%d", i ? " " : "",
                              hundredths / 100, hundredths % 100, sizes[i][0] * side / 1024,
                              sizes[i][1] * side / 1024);
    }
    dpk_builder_meta(b, "pipeline.bins", "%s", text);
}
