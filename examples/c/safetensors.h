/* safetensors.h - reads `.safetensors` files (https://github.com/huggingface/safetensors): a
 * little-endian uint64 n, n bytes of JSON {name: {"dtype", "shape", "data_offsets"},
 * "__metadata__": {name: text}}, then the arrays' bytes. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include <stddef.h>
#include <stdio.h>

/* All bytes of a stream in memory of malloc, or NULL. */
void *read_stream(FILE *stream, size_t *bytes);

/* A value in a text of JSON that has been checked. */
typedef struct {
    const char *at, *end;
} json;

/* Whether the text is one value and nothing else; *value is then it. */
int json_check(const char *text, size_t size, json *value);

/* The next name and value of an object, 0 past the last. *rest begins as the object; an array gives
 * its values with empty names, and anything else nothing. */
int json_next(json *rest, json *name, json *value);

/* The value of a name in an object; 0 where there is none. */
int json_get(json object, const char *name, json *value);

/* The text of a string, with its end, in at most `size` bytes; 0 if it does not fit, or is no
 * string. */
int json_text(json value, char *text, size_t size);

/* Numbers; true is 1, false 0. json_size takes integers from 0 on alone. */
int json_number(json value, double *number);
int json_size(json value, size_t *number);

enum { SAFETENSORS_RANK_MOST = 8 };

typedef struct {
    char *name;
    char dtype[8]; /* "F32", "I64", ... */
    size_t rank, shape[SAFETENSORS_RANK_MOST];
    const char *data; /* at any address: copy it to where numbers are aligned */
    size_t bytes;
} safetensor;

typedef struct {
    safetensor *arrays; /* by name */
    size_t count;
    json metadata; /* an object, or empty */
    char *content;
} safetensors;

/* Read a file: NULL, or what is wrong with it. Close it in any case. */
const char *safetensors_open(safetensors *file, const char *path);
void safetensors_close(safetensors *file);

/* The array of a name, or NULL. */
const safetensor *safetensors_find(const safetensors *file, const char *name);

#endif
