/* safetensors.c - see safetensors.h. Whatever bytes a file has, nothing outside of them is read. */
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- JSON (RFC 8259) --------------------------------------------------------------------------
 * Each skip_ function returns what follows that which stands at p, or NULL if it does not. */

enum { DEPTH_MOST = 32 };

static const char *skip_space(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
    return p;
}

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static int hex_digit(char c) {
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) % 16 : -1;
}

/* The code of \uXXXX at p, or -1. */
static long unicode_escape(const char *p, const char *end) {
    long code = 0;
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return -1;
    for (int i = 2; i < 6; i++) {
        const int digit = hex_digit(p[i]);
        if (digit < 0) return -1;
        code = 16 * code + digit;
    }
    return code;
}

static const char *skip_string(const char *p, const char *end) {
    if (p == end || *p++ != '"') return NULL;
    while (p < end && *p != '"') {
        if ((unsigned char)*p < ' ') return NULL;
        if (*p++ != '\\') continue;
        if (p == end || !*p || !strchr("\"\\/bfnrtu", *p)) return NULL;
        if (*p == 'u' && unicode_escape(p - 1, end) < 0) return NULL;
        p++;
    }
    return p < end ? p + 1 : NULL;
}

static const char *skip_digits(const char *p, const char *end) {
    const char *first = p;
    while (p < end && is_digit(*p)) p++;
    return p > first ? p : NULL;
}

static const char *skip_number(const char *p, const char *end) {
    if (p < end && *p == '-') p++;
    p = p < end && *p == '0' ? p + 1 : skip_digits(p, end);
    if (p && p < end && *p == '.') p = skip_digits(p + 1, end);
    if (p && p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        p = skip_digits(p, end);
    }
    return p;
}

static const char *skip_value(const char *p, const char *end, int depth);

/* An object or an array. */
static const char *skip_members(const char *p, const char *end, int depth) {
    const char close = *p == '{' ? '}' : ']';
    p = skip_space(p + 1, end);
    if (depth == DEPTH_MOST) return NULL;
    if (p < end && *p == close) return p + 1;
    for (;; p++) {
        if (close == '}') {
            p = skip_string(skip_space(p, end), end);
            if (!p || (p = skip_space(p, end)) == end || *p++ != ':') return NULL;
        }
        p = skip_value(skip_space(p, end), end, depth + 1);
        if (!p || (p = skip_space(p, end)) == end) return NULL;
        if (*p == close) return p + 1;
        if (*p != ',') return NULL;
    }
}

static const char *skip_value(const char *p, const char *end, int depth) {
    static const char *const words[] = {"true", "false", "null"};
    if (p == end) return NULL;
    if (*p == '{' || *p == '[') return skip_members(p, end, depth);
    if (*p == '"') return skip_string(p, end);
    for (size_t i = 0; i < 3; i++) {
        const size_t n = strlen(words[i]);
        if ((size_t)(end - p) >= n && !memcmp(p, words[i], n)) return p + n;
    }
    return skip_number(p, end);
}

int json_check(const char *text, size_t size, json *value) {
    const char *end = text + size, *at = skip_space(text, end), *after = skip_value(at, end, 0);
    if (!after || skip_space(after, end) != end) return 0;
    value->at = at;
    value->end = after;
    return 1;
}

int json_next(json *rest, json *name, json *value) {
    const char *p = rest->at, *end = rest->end;
    if (p == end || !strchr("{[,", *p)) return 0;
    /* the last character tells an object from an array */
    p = skip_space(p + 1, end);
    name->at = name->end = p;
    if (p == end - 1) return 0; /* empty */
    if (end[-1] == '}') {
        name->end = skip_string(p, end);
        p = skip_space(skip_space(name->end, end) + 1, end);
    }
    value->at = p;
    value->end = skip_value(p, end, 0);
    rest->at = skip_space(value->end, end);
    return 1;
}

int json_get(json object, const char *name, json *value) {
    char text[256];
    json own;
    if (object.at == object.end || *object.at != '{') return 0;
    while (json_next(&object, &own, value))
        if (json_text(own, text, sizeof text) && !strcmp(text, name)) return 1;
    return 0;
}

/* Write a code as UTF-8 and return what follows it. */
static char *put_utf8(char *to, unsigned long code) {
    static const unsigned char lead[] = {0, 0xc0, 0xe0, 0xf0};
    const int tail = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *to++ = (char)(lead[tail] | code >> 6 * tail);
    for (int i = tail - 1; i >= 0; i--) *to++ = (char)(0x80 | (code >> 6 * i & 0x3f));
    return to;
}

/* The code of an escape at *p, which moves behind it; 0 for what no text may hold. */
static unsigned long take_escape(const char **p, const char *end) {
    static const char names[] = "\"\\/bfnrt", codes[] = "\"\\/\b\f\n\r\t";
    if ((*p)[1] != 'u') {
        *p += 2;
        return (unsigned char)codes[strchr(names, (*p)[-1]) - names];
    }
    const long high = unicode_escape(*p, end);
    *p += 6;
    if (high < 0xd800 || high > 0xdfff) return (unsigned long)high;
    const long low = unicode_escape(*p, end); /* of a pair beyond 16 bits */
    if (high > 0xdbff || low < 0xdc00 || low > 0xdfff) return 0;
    *p += 6;
    return 0x10000 + ((unsigned long)(high - 0xd800) << 10) + (unsigned long)(low - 0xdc00);
}

int json_text(json value, char *text, size_t size) {
    const char *p = value.at + 1, *end = value.end - 1;
    if (value.at == value.end || *value.at != '"') return 0;
    /* no escape is shorter than its text */
    if ((size_t)(end - p) >= size) return 0;
    while (p < end) {
        if (*p != '\\') {
            *text++ = *p++;
            continue;
        }
        const unsigned long code = take_escape(&p, end);
        if (!code) return 0;
        text = put_utf8(text, code);
    }
    *text = '\0';
    return 1;
}

int json_number(json value, double *number) {
    char text[64], *after;
    const size_t n = (size_t)(value.end - value.at);
    if (!n || n >= sizeof text || !strchr("-0123456789tf", *value.at)) return 0;
    memcpy(text, value.at, n);
    text[n] = '\0';
    *number = *text == 't' ? 1 : *text == 'f' ? 0 : strtod(text, &after);
    return 1;
}

int json_size(json value, size_t *number) {
    *number = 0;
    for (const char *p = value.at; p < value.end; p++) {
        const size_t digit = (size_t)(*p - '0');
        if (!is_digit(*p) || *number > ((size_t)-1 - digit) / 10) return 0;
        *number = 10 * *number + digit;
    }
    return value.at < value.end;
}

/* -- files -------------------------------------------------------------------------------- */

void *read_stream(FILE *stream, size_t *bytes) {
    size_t room = 1 << 16, used = 0;
    char *content = malloc(room);
    while (content) {
        used += fread(content + used, 1, room - used, stream);
        if (used < room) break;
        char *larger = room > (size_t)-1 / 2 ? NULL : realloc(content, room *= 2);
        if (!larger) free(content);
        content = larger;
    }
    *bytes = used;
    if (content && !ferror(stream)) return realloc(content, used + 1);
    free(content);
    return NULL;
}

static size_t width_of(const char *dtype) {
    static const struct {
        const char *name;
        size_t bytes;
    } dtypes[] = {{"F64", 8}, {"F32", 4}, {"F16", 2},  {"BF16", 2},    {"I64", 8},
                  {"I32", 4}, {"I16", 2}, {"I8", 1},   {"U64", 8},     {"U32", 4},
                  {"U16", 2}, {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(dtype, dtypes[i].name)) return dtypes[i].bytes;
    return 0;
}

/* Integers of an array of JSON: how many, or `most` + 1 where there are more or others. */
static size_t sizes_of(json list, size_t *sizes, size_t most) {
    size_t count = 0;
    json name, value;
    if (list.at == list.end || *list.at != '[') return most + 1;
    for (; json_next(&list, &name, &value); count++)
        if (count == most || !json_size(value, &sizes[count])) return most + 1;
    return count;
}

/* One array of the header; `size` bytes of data follow that. */
static const char *read_entry(safetensor *array, json entry, const char *data, size_t size) {
    json dtype, shape, offsets;
    size_t at[2];
    if (!json_get(entry, "dtype", &dtype) || !json_get(entry, "shape", &shape) ||
        !json_get(entry, "data_offsets", &offsets))
        return "an array has no dtype, shape or data_offsets";
    if (!json_text(dtype, array->dtype, sizeof array->dtype) || !width_of(array->dtype))
        return "an array has an unknown dtype";
    array->rank = sizes_of(shape, array->shape, SAFETENSORS_RANK_MOST);
    if (array->rank > SAFETENSORS_RANK_MOST) return "an array has no valid shape";
    if (sizes_of(offsets, at, 2) != 2 || at[0] > at[1] || at[1] > size)
        return "an array lies outside of the file";
    array->data = data + at[0];
    array->bytes = width_of(array->dtype);
    for (size_t i = 0; i < array->rank; i++) {
        if (array->shape[i] && array->bytes > (size_t)-1 / array->shape[i])
            return "an array is larger than any file";
        array->bytes *= array->shape[i];
    }
    return array->bytes == at[1] - at[0] ? NULL : "an array's shape does not fit its bytes";
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const safetensor *)a)->name, ((const safetensor *)b)->name);
}

static const char *read_header(safetensors *file, json header, const char *data, size_t size) {
    size_t most = 0, sum = 0;
    json name, value, rest = header;
    while (json_next(&rest, &name, &value)) most++;
    file->arrays = calloc(most + 1, sizeof *file->arrays);
    if (!file->arrays) return "out of memory";
    while (json_next(&header, &name, &value)) {
        safetensor *array = &file->arrays[file->count];
        const size_t room = (size_t)(name.end - name.at);
        array->name = malloc(room + 1);
        if (!array->name) return "out of memory";
        file->count++; /* closing frees the name */
        if (!json_text(name, array->name, room + 1)) return "a name is no text";
        if (!strcmp(array->name, "__metadata__")) {
            if (value.at == value.end || *value.at != '{') return "its __metadata__ is no object";
            file->metadata = value;
            free(array->name);
            file->count--;
            continue;
        }
        const char *wrong = read_entry(array, value, data, size);
        if (wrong) return wrong;
        sum += array->bytes;
        if (sum > size) return "its arrays overlap";
    }
    if (sum < size) return "its arrays do not fill it";
    qsort(file->arrays, file->count, sizeof *file->arrays, by_name);
    for (size_t i = 1; i < file->count; i++)
        if (!by_name(&file->arrays[i - 1], &file->arrays[i])) return "a name stands twice in it";
    return NULL;
}

const char *safetensors_open(safetensors *file, const char *path) {
    size_t bytes, length = 0;
    json header;
    memset(file, 0, sizeof *file);
    FILE *stream = fopen(path, "rb");
    if (!stream) return "it cannot be opened";
    file->content = read_stream(stream, &bytes);
    fclose(stream);
    if (!file->content) return "it cannot be read";
    file->metadata.at = file->metadata.end = file->content;
    if (bytes < 8) return "it is cut";
    for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)file->content[i];
    if (length > bytes - 8) return "it is cut";
    if (!json_check(file->content + 8, length, &header) || *header.at != '{')
        return "its header is no object of JSON";
    return read_header(file, header, file->content + 8 + length, bytes - 8 - length);
}

void safetensors_close(safetensors *file) {
    for (size_t i = 0; i < file->count; i++) free(file->arrays[i].name);
    free(file->arrays);
    free(file->content);
}

const safetensor *safetensors_find(const safetensors *file, const char *name) {
    for (size_t i = 0; i < file->count; i++)
        if (!strcmp(file->arrays[i].name, name)) return &file->arrays[i];
    return NULL;
}
