/* trained.c - run a trained module, from the file that Python has saved, on the features of a
 * picture.
 *
 *     trained MODEL.safetensors [--state FILE.safetensors] [--slots K] [--steps T] [--threads N]
 *         [FEATURES]
 *
 * MODEL is what SlotMixture.save or SlotAttention.save wrote (float32), or the model.safetensors of
 * a pipeline's run, whose slot module is used. FEATURES, or the standard input, holds N rows of I
 * float32 numbers, as NumPy's x.astype("float32").tofile(path) writes them. Each slot is a line of
 * the output, with as many digits as float32 has.
 *
 * FILE holds the initial state: "slots", or "mean" (or "indices" of inputs) and "log_std", perhaps
 * "prior", as `init` takes them in Python. Without it, slots start where the module says: at inputs
 * spread evenly over the rows, or drawn from its Gaussian. A slot's log standard deviation is drawn
 * in both cases, with one seed. */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "safetensors.h"
#include "smm.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files hold little-endian numbers, which this program does not turn around"
#endif

enum { SLOTS_MOST = 1 << 20, STEPS_MOST = (1 << 20) - 1 };

typedef struct {
    smm_config config;
    size_t slots, steps;
    int starts_at_inputs;
    char prefix[256]; /* of its arrays' names in the file */
    const float *params[SMM_PARAMS];
} module;

static void *memory[SMM_PARAMS + 16]; /* what release() frees */
static size_t blocks;
static safetensors model, state;

static void release(void) {
    while (blocks) free(memory[--blocks]);
    safetensors_close(&model);
    safetensors_close(&state);
}

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("trained: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *keep(void *block) {
    if (!block) fail("out of memory");
    return memory[blocks++] = block;
}

static void *allocate(size_t count, size_t size) {
    return keep(calloc(count ? count : 1, size)); /* calloc checks the product */
}

/* -- what the file tells ------------------------------------------------------------------- */

static const safetensor *array_of(const module *m, const char *name) {
    char whole[sizeof m->prefix + 64];
    snprintf(whole, sizeof whole, "%s%s", m->prefix, name);
    return safetensors_find(&model, whole);
}

/* Length of an axis, counted from the last where negative; 0 where there is none. */
static size_t axis(const safetensor *a, int i) {
    if (!a || a->rank < (size_t)(i < 0 ? -i : i + 1)) return 0;
    return a->shape[i < 0 ? (int)a->rank + i : i];
}

static void set(module *m, const char *name, double value) {
    if (smm_config_set(&m->config, name, value) != SMM_OK)
        fail("the option %s is unknown to this library, or %g out of its range", name, value);
}

static size_t count_of(json value, const char *name, size_t most) {
    size_t count;
    if (!json_size(value, &count) || !count || count > most)
        fail("%s must be an integer from 1 to %zu", name, most);
    return count;
}

/* The string of a name in an object, in `text`; 0 where it is another value or none. */
static int string_at(json object, const char *name, char *text, size_t size) {
    json value;
    return json_get(object, name, &value) && json_text(value, text, size);
}

static int string_is(json object, const char *name, const char *expected) {
    char text[64];
    return string_at(object, name, text, sizeof text) && !strcmp(text, expected);
}

/* Which of a list of strings, which NULL ends, an option is. */
static int one_of(json options, const char *name, const char *const *list) {
    int i = 0;
    while (list[i] && !string_is(options, name, list[i])) i++;
    if (!list[i]) fail("the option %s has a value that is unknown here", name);
    return i;
}

/* JSON that a text of the metadata holds. */
static int metadata(const char *name, json *value) {
    json text;
    if (!json_get(model.metadata, name, &text)) return 0;
    const size_t room = (size_t)(text.end - text.at) + 1;
    char *content = allocate(room, 1);
    if (!json_text(text, content, room) || !json_check(content, strlen(content), value) ||
        *value->at != '{')
        fail("%s in the metadata is no object of JSON", name);
    return 1;
}

/* The options of `save` that are strings, and whose place in a list is a number of the core. */
static const struct {
    const char *name, *core, *values[5];
} choices[] = {
    {"prior", "uniform_prior", {"learned", "uniform"}},
    {"precision", "bfloat16", {"float32", "bfloat16"}},
    {"eps_in", "eps_in_total", {"weights", "total"}},
    {"activation", "gelu", {"relu", "gelu"}},
    {"head_attention", "attention_sum", {"mean", "sum"}},
    {"slot_mlp", "slot_mlp", {"always", "not-last", "never"}},
    {"update", "update", {"mean", "scaled-mean", "constant", "sum"}},
};

/* One option of `save`. Those that a forward pass of given weights does not depend on are left. */
static void read_option(module *m, const char *name, json value, json options) {
    static const char *const left[] = {"variant", "gradient", "weight_init", "bfloat16_inputs"};
    static const char *const starts[] = {"gaussian", "inputs", NULL};
    double number;
    if (*value.at == 'n') return; /* null: the default */
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        if (!strcmp(name, left[i])) return;
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (!strcmp(name, choices[i].name)) {
            set(m, choices[i].core, one_of(options, name, choices[i].values));
            return;
        }
    if (!strcmp(name, "num_slots")) {
        m->slots = count_of(value, name, SLOTS_MOST);
        set(m, "update_slots", (double)m->slots);
    } else if (!strcmp(name, "num_iters")) m->steps = count_of(value, name, STEPS_MOST);
    else if (!strcmp(name, "start")) m->starts_at_inputs = one_of(options, name, starts);
    else if (!strcmp(name, "dtype")) {
        if (!string_is(options, name, "float32"))
            fail("the module's dtype must be float32, is %.*s", (int)(value.end - value.at),
                 value.at);
    } else if (json_number(value, &number)) set(m, name, number);
    else fail("the option %s is unknown here, or no number", name);
}

/* A file of `save`: the options in its metadata. */
static void of_save(module *m, json options) {
    char name[64];
    json own, value;
    const int attention = string_is(model.metadata, "module", "SlotAttention");
    if (!attention && !string_is(model.metadata, "module", "SlotMixture"))
        fail("the file must hold a SlotAttention or a SlotMixture");
    static const char *const variants[] = {"stable", "paper", "reference", "fair", NULL};
    const int variant = attention ? 0 : one_of(options, "variant", variants);
    const smm_kind kind = attention      ? SMM_SLOT_ATTENTION
                          : variant >= 2 ? SMM_SLOT_MIXTURE_REFERENCE
                                         : SMM_SLOT_MIXTURE;
    if (!json_get(options, "dim", &value)) fail("the options have no dim");
    smm_config_init(&m->config, kind, count_of(value, "dim", SMM_WIDTH_MOST));
    set(m, "fair", variant == 3);
    for (json rest = options; json_next(&rest, &own, &value);) {
        if (!json_text(own, name, sizeof name)) fail("an option's name is no name");
        read_option(m, name, value, options);
    }
    if (!m->slots || !m->steps) fail("the options have no num_slots or no num_iters");
}

/* The prefix of the only array that is called `mark` in its module. */
static void find_prefix(module *m, const char *mark) {
    size_t found = 0, tail = strlen(mark);
    for (size_t i = 0; i < model.count; i++) {
        const char *name = model.arrays[i].name;
        const size_t length = strlen(name), prefix = length - tail;
        if (length < tail || strcmp(name + prefix, mark) || (prefix && name[prefix - 1] != '.') ||
            prefix >= sizeof m->prefix)
            continue;
        memcpy(m->prefix, name, prefix);
        m->prefix[prefix] = '\0';
        found++;
    }
    if (found != 1) fail("the file must hold one %s, holds %zu", mark, found);
}

/* A file of a run: names and shapes tell the options, and the run's settings the others. */
static void of_run(module *m, json config) {
    json value;
    const int attention = string_is(config, "model", "sa");
    if (!attention && !string_is(config, "model", "smm")) fail("the run's model must be sa or smm");
    find_prefix(m, attention ? "slots_mu" : "mean_mu");
    const size_t dim = axis(array_of(m, attention ? "slots_mu" : "mean_mu"), -1);
    const int reference = !attention && array_of(m, "to_v.weight");
    smm_config_init(&m->config,
                    attention   ? SMM_SLOT_ATTENTION
                    : reference ? SMM_SLOT_MIXTURE_REFERENCE
                                : SMM_SLOT_MIXTURE,
                    dim);
    const size_t normed = axis(array_of(m, "norm_input.weight"), 0);
    set(m, "input_dim", (double)(normed ? normed : axis(array_of(m, "to_k.weight"), 1)));
    set(m, "hidden_dim", (double)axis(array_of(m, "mlp.0.weight"), 0));
    set(m, "qkv_bias", array_of(m, "to_q.bias") != NULL);
    if (!attention) {
        set(m, "input_mlp", array_of(m, "mlp_input.0.weight") != NULL);
        set(m, "reduce", array_of(m, "to_out.weight") || array_of(m, "to_out.2.weight"));
        set(m, "norm_kv", array_of(m, "norm_kv.weight") != NULL);
        set(m, "slot_norm", array_of(m, "norm_slots.weight") != NULL);
        const int stable = string_is(config, "variant", "stable");
        double temperature;
        set(m, "uniform_prior", stable);
        if (!json_get(config, "temperature", &value) || !json_number(value, &temperature))
            temperature = stable ? 1 / sqrt((double)dim) : 1;
        set(m, "temperature", temperature);
    }
    m->starts_at_inputs = string_is(config, "start", "inputs");
    if (!json_get(config, "slots", &value)) fail("the run's settings have no slots");
    m->slots = count_of(value, "slots", SLOTS_MOST);
    if (!json_get(config, "train_iters", &value)) fail("the run's settings have no train_iters");
    m->steps = count_of(value, "train_iters", STEPS_MOST);
}

/* The float32 numbers of an array, where the alignment is right, checked as Python does. */
static float *floats_of(const safetensor *a, const char *name) {
    if (strcmp(a->dtype, "F32")) fail("%s must be F32, is %s", name, a->dtype);
    const size_t count = a->bytes / sizeof(float);
    float *numbers = allocate(count, sizeof(float));
    memcpy(numbers, a->data, a->bytes);
    if (smm_first_nonfinite(32, numbers, count, 1) < count) fail("%s is not finite", name);
    return numbers;
}

static void read_module(module *m, const char *path) {
    json settings;
    const char *wrong = safetensors_open(&model, path);
    if (wrong) fail("%s: %s", path, wrong);
    if (metadata("options", &settings)) of_save(m, settings);
    else if (metadata("config", &settings)) of_run(m, settings);
    else fail("%s does not tell the module's options", path);
    if (smm_config_check(&m->config) != SMM_OK) fail("%s", smm_status_str(SMM_ERR_CONFIG));
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        size_t shape[2] = {0, 0};
        const char *name = smm_param_name(i);
        const size_t rank = (size_t)smm_param_shape(&m->config, i, shape);
        if (!rank) continue;
        const safetensor *a = array_of(m, name);
        if (!a) fail("%s has no %s%s", path, m->prefix, name);
        if (a->rank != rank || a->shape[0] != shape[0] || (rank == 2 && a->shape[1] != shape[1]))
            fail("%s%s has another shape than the options say", m->prefix, name);
        m->params[i] = floats_of(a, name);
    }
}

/* -- the initial state --------------------------------------------------------------------- */

/* Standard normal numbers (Box and Muller) of splitmix64. */
static double uniform(void) {
    static uint64_t seed = 1;
    uint64_t z = seed += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0; /* 2^53 */
}

static double normal(void) {
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

/* (K,D) numbers from the Gaussian whose parameters are `name`_mu and `name`_logsigma: one for all
 * slots, or one for each. */
static const float *drawn(const module *m, const char *name) {
    const size_t D = m->config.dim;
    const float *parts[2];
    size_t rows[2];
    for (size_t i = 0; i < 2; i++) {
        char whole[32];
        snprintf(whole, sizeof whole, "%s_%s", name, i ? "logsigma" : "mu");
        const safetensor *a = array_of(m, whole);
        if (!a || axis(a, -1) != D || a->rank > 2 || (a->rank == 2 && a->shape[0] != m->slots))
            fail("%s must be there and have shape (dim) or (num_slots, dim)", whole);
        rows[i] = a->rank == 2;
        parts[i] = floats_of(a, whole);
    }
    float *numbers = allocate(m->slots, D * sizeof *numbers);
    for (size_t k = 0; k < m->slots; k++)
        for (size_t d = 0; d < D; d++)
            numbers[k * D + d] = (float)(parts[0][rows[0] * k * D + d] +
                                         exp(parts[1][rows[1] * k * D + d]) * normal());
    return numbers;
}

static void draw(const module *m, size_t inputs, smm_inputs_f32 *in) {
    const int mixture = m->config.kind != SMM_SLOT_ATTENTION;
    if (m->starts_at_inputs) {
        if (m->slots > inputs) fail("%zu slots cannot start at %zu inputs", m->slots, inputs);
        int64_t *indices = allocate(m->slots, sizeof *indices);
        for (size_t k = 0; k < m->slots; k++) indices[k] = (int64_t)(k * inputs / m->slots);
        in->indices = indices;
    } else {
        in->mean = drawn(m, mixture ? "mean" : "slots");
    }
    if (mixture) in->log_std = drawn(m, "logstd");
}

/* An array of a state of one image, (K,...) or (1,K,...), whose K it gives the module. */
static const safetensor *state_array(module *m, const char *name, size_t width) {
    const safetensor *a = safetensors_find(&state, name);
    const size_t row = strcmp(name, "indices") ? sizeof(float) : sizeof(int64_t);
    if (!a) return NULL;
    m->slots = a->bytes / row / width;
    if (!m->slots || m->slots > SLOTS_MOST || m->slots * width * row != a->bytes ||
        axis(a, width > 1 ? -2 : -1) != m->slots)
        fail("%s has not the shape of an initial state", name);
    return a;
}

static const float *state_floats(module *m, const char *name, size_t width) {
    const safetensor *a = state_array(m, name, width);
    return a ? floats_of(a, name) : NULL;
}

static void read_state(module *m, const char *path, smm_inputs_f32 *in) {
    const int mixture = m->config.kind != SMM_SLOT_ATTENTION;
    const char *wrong = safetensors_open(&state, path);
    if (wrong) fail("%s: %s", path, wrong);
    const safetensor *first = state_array(m, "indices", 1);
    if (first) {
        int64_t *indices = allocate(m->slots, sizeof *indices);
        if (strcmp(first->dtype, "I64")) fail("indices must be I64, are %s", first->dtype);
        memcpy(indices, first->data, first->bytes);
        in->indices = indices;
    } else {
        in->mean = state_floats(m, mixture ? "mean" : "slots", m->config.dim);
        if (!in->mean) fail("%s has neither %s nor indices", path, mixture ? "mean" : "slots");
    }
    const size_t slots = m->slots;
    if (!mixture) return;
    in->log_std = state_floats(m, "log_std", m->config.dim);
    if (!in->log_std || m->slots != slots) fail("%s has no log_std of %zu slots", path, slots);
    in->prior = state_floats(m, "prior", 1);
    if (m->slots != slots) fail("%s has no prior of %zu slots", path, slots);
}

/* -- the program --------------------------------------------------------------------------- */

/* The argument behind that at *i, to which *i moves. */
static const char *next_of(char **argv, int *i) {
    if (!argv[*i + 1]) fail("%s must be followed by its value", argv[*i]);
    return argv[++*i];
}

static size_t number_of(char **argv, int *i, size_t most) {
    const char *name = argv[*i], *text = next_of(argv, i);
    const json value = {text, text + strlen(text)};
    return count_of(value, name, most);
}

static const float *read_features(const char *path, size_t width, size_t *inputs) {
    size_t bytes;
    FILE *stream = path ? fopen(path, "rb") : stdin;
    if (!stream) fail("%s cannot be opened", path);
    float *numbers = keep(read_stream(stream, &bytes));
    if (path) fclose(stream);
    *inputs = bytes / sizeof(float) / width;
    if (!*inputs || *inputs * width * sizeof(float) != bytes)
        fail("the features must be rows of %zu float32 numbers, are %zu bytes", width, bytes);
    if (smm_first_nonfinite(32, numbers, *inputs * width, 1) < *inputs * width)
        fail("the features are not finite");
    return numbers;
}

int main(int argc, char **argv) {
    static module m;
    const char *path = NULL, *features = NULL, *initial = NULL;
    size_t slots = 0, steps = 0, threads = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--state")) initial = next_of(argv, &i);
        else if (!strcmp(argv[i], "--slots")) slots = number_of(argv, &i, SLOTS_MOST);
        else if (!strcmp(argv[i], "--steps")) steps = number_of(argv, &i, STEPS_MOST);
        else if (!strcmp(argv[i], "--threads")) threads = number_of(argv, &i, 4096);
        else if (!path) path = argv[i];
        else features = argv[i];
    }
    if (!path) {
        fputs("usage: trained MODEL.safetensors [--state FILE.safetensors] [--slots K]\n"
              "           [--steps T] [--threads N] [FEATURES]\n",
              stderr);
        return 2;
    }
    atexit(release);
    read_module(&m, path);
    if (slots) m.slots = slots;
    if (steps) m.steps = steps;

    size_t inputs;
    smm_inputs_f32 in = {.x = read_features(features, m.config.input_dim, &inputs)};
    if (initial) read_state(&m, initial, &in);
    else draw(&m, inputs, &in);

    const size_t width = smm_slot_width(&m.config);
    float *found = allocate(m.slots, width * sizeof *found);
    const smm_dims dims = {.batch = 1, .inputs = inputs, .slots = m.slots, .iters = m.steps};
    const smm_outputs_f32 out = {.slots = found};
    const smm_run run = {.threads = (int)threads};
    const smm_status status = smm_forward_f32(&m.config, &dims, m.params, &in, &out, &run, NULL);
    if (status != SMM_OK) fail("%s", smm_status_str(status));
    for (size_t k = 0; k < m.slots; k++)
        for (size_t d = 0; d < width; d++)
            printf("%.9g%c", found[k * width + d], d + 1 < width ? ' ' : '\n');
    return fflush(stdout) ? 1 : 0;
}
