/* The C interface of vit-export: run its ONNX files in your own process.
 *
 * One function is exported, `vit_export_get_api`; it returns a table of all others. Handles are
 * opaque, and nothing here throws, exits or aborts: every call that can fail returns a status. In
 * C++, `vit_export.hpp` turns statuses into exceptions and handles into objects.
 *
 * Threads: `classify`, `embed`, `run` and `selftest` may be called on one model by any number of
 * threads at the same time, and so may `prepare` and everything that only reads. Creation and
 * release may not: no other call may use a model while it is created or released.
 *
 * Text is UTF-8 and ends with a zero byte. What a result points to lives until that result is
 * released; what a model points to, until the model is released.
 */
#ifndef VIT_EXPORT_H
#define VIT_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __GNUC__
#define VIT_EXPORT_PUBLIC __attribute__((visibility("default")))
#else
#define VIT_EXPORT_PUBLIC
#endif

/* Version of the table below. A later version adds functions to the end of the table, and fields to
 * the end of structs that begin with `struct_size`; everything else stays as it is. */
#define VIT_EXPORT_API_VERSION 1

/* A model: an ONNX file that is loaded and ready to run. */
typedef struct vit_export_model vit_export_model;

/* Why a call failed; NULL where it succeeded. The caller owns it and calls `release_status`. */
typedef struct vit_export_status vit_export_status;

/* What `classify`, `embed`, `run`, `prepare` and `selftest` return; the caller releases it. */
typedef struct vit_export_predictions vit_export_predictions;
typedef struct vit_export_outputs vit_export_outputs;

/* Kinds of failure: the classes of `vit_export.errors` in Python. */
typedef enum vit_export_code {
  VIT_EXPORT_OK = 0,
  VIT_EXPORT_USAGE_ERROR = 1,    /* the request itself is wrong */
  VIT_EXPORT_ARTIFACT_ERROR = 2, /* a model or golden file is missing, damaged or incomplete */
  VIT_EXPORT_GATE_ERROR = 3,     /* the model does not compute what its torch model computes */
  VIT_EXPORT_PROVIDER_ERROR = 4, /* ONNX Runtime or the provider is missing or cannot run */
  VIT_EXPORT_INPUT_ERROR = 5,    /* an array has the wrong shape or range */
  VIT_EXPORT_IMAGE_ERROR = 6,    /* an image cannot be used */
  VIT_EXPORT_MEMORY_ERROR = 7,   /* memory is exhausted */
  VIT_EXPORT_INTERNAL_ERROR = 8  /* a mistake in this library */
} vit_export_code;

/* Options of `create_model`. Zero all of it, then set `struct_size` and what you need. */
typedef struct vit_export_options {
  size_t struct_size;   /* sizeof(vit_export_options) */
  const char* provider; /* "cpu" (also NULL), "cuda", "tensorrt", ...; a name of ONNX Runtime's */
  int32_t device;       /* number of the GPU, for a provider that counts them; else 0 */
  int32_t threads;      /* CPU threads of one run; 0 for all CPUs that this process may use */
  const char* library;  /* ONNX Runtime's library; NULL: the guide says which is used */
  /* Not 0: measure the golden file at creation, and fail where it differs. What could not be
   * measured is no failure: the function `selftest` tells it. */
  int32_t selftest;
  int32_t cpu_fallback; /* not 0: nodes that the provider cannot run may run on the CPU */
  /* Options of the provider, in ONNX Runtime's spelling; cpu has none. */
  const char* const* provider_option_names;
  const char* const* provider_option_values;
  size_t provider_option_count;
} vit_export_options;

/* One image: 8-bit samples, row after row, the channels of a pixel side by side. */
typedef struct vit_export_image {
  const uint8_t* pixels;
  uint32_t width;
  uint32_t height;
  uint32_t channels; /* 3 for RGB, 1 for grey, 4 for RGB with alpha, which is ignored */
  size_t stride;     /* bytes from one row to the next; 0 for rows without a gap */
} vit_export_image;

/* How an image becomes `pixel_values`: resize, cut the centre, scale to [0, 1], normalise. */
typedef struct vit_export_preprocess {
  size_t struct_size; /* sizeof(vit_export_preprocess) */
  uint32_t height;    /* of the model's input, in pixels */
  uint32_t width;
  double crop_pct;           /* crop size / resized short side */
  const char* interpolation; /* nearest, box, bilinear, hamming, bicubic or lanczos (Pillow's) */
  const char* crop_mode;     /* center, squash or border, as in the manifest */
  const char* color;         /* RGB, L (grey), or "" for another number of channels */
  const double* mean;        /* one per channel, of pixels in [0, 1] */
  const double* std;
  uint32_t channels;
} vit_export_preprocess;

/* Name, type and shape of an input or output of the graph. */
typedef struct vit_export_tensor_spec {
  const char* name;
  const char* dtype;             /* numpy's name, e.g. "float32" */
  const int64_t* shape;          /* -1 for a dynamic dimension */
  const char* const* dimensions; /* names of dynamic dimensions; "" for the others */
  size_t rank;
} vit_export_tensor_spec;

/* What the file says about the model; see "Manifest" in the documentation. */
typedef struct vit_export_manifest {
  size_t struct_size; /* set it before the call: fields beyond it are not written */
  const char* json;   /* all of it, as stored */
  const char* variant;
  const char* precision;  /* fp32, fp16, bf16, int8 or int8-static */
  const char* activation; /* from logits to scores: softmax, sigmoid or none */
  const char* graph_sha256;
  int32_t schema_version;
  int32_t opset;
  int32_t passed; /* 1: the gate passed; 0: it failed; -1: it was not measured */
  const vit_export_preprocess* preprocess; /* NULL where the inputs are not images */
  const vit_export_tensor_spec* inputs;
  size_t input_count;
  const vit_export_tensor_spec* outputs;
  size_t output_count;
  const char* const* labels; /* one per class; none where unknown */
  size_t label_count;
} vit_export_manifest;

/* What really runs a model. */
typedef struct vit_export_runtime {
  size_t struct_size;   /* set it before the call: fields beyond it are not written */
  const char* provider; /* as in the options */
  const char* library;  /* path of ONNX Runtime's library */
  const char* version;  /* of ONNX Runtime */
  int32_t api_version;  /* of ONNX Runtime's C interface, as negotiated */
  int32_t threads;
} vit_export_runtime;

/* One class of an image. */
typedef struct vit_export_prediction {
  int64_t index;
  double score; /* a probability; the model's own output where the activation is "none" */
  const char* label;
} vit_export_prediction;

typedef enum vit_export_dtype {
  VIT_EXPORT_FLOAT32 = 0, /* also of float16, bfloat16 and float64 outputs, converted */
  VIT_EXPORT_INT64 = 1    /* of all integer outputs, converted */
} vit_export_dtype;

/* An array in memory; its last dimension changes fastest. */
typedef struct vit_export_tensor {
  const char* name;
  const int64_t* shape;
  size_t rank;
  size_t count; /* number of elements */
  vit_export_dtype dtype;
  const void* data; /* float or int64_t */
} vit_export_tensor;

/* Distance of one output from its float64 reference, at one batch size. */
typedef struct vit_export_measurement {
  const char* output;
  int64_t batch;
  double max_abs;
  double tolerance; /* NaN where the cosine decides */
  double cosine;
  int32_t passed;
} vit_export_measurement;

/* Result of comparing a model with its golden file on this machine. */
typedef struct vit_export_selftest {
  size_t struct_size; /* set it before the call: fields beyond it are not written */
  int32_t passed;
  const char* reason; /* why it did not pass; empty where it did */
  const char* notes;  /* what could not be measured; empty where all was */
  const char* provider;
  const char* output; /* the output that the figures below are of: the logits, where there are */
  double max_abs;     /* over all batches; infinite where nothing could be compared */
  double tolerance;   /* largest distance allowed; NaN where the cosine decides */
  double baseline;    /* distance of torch's own arithmetic; NaN where there is none */
  double cosine;
  double row_max_abs; /* largest difference between rows that must be equal */
  int64_t samples;
  const vit_export_measurement* measurements; /* every output at every batch size */
  size_t measurement_count;
} vit_export_selftest;

typedef struct vit_export_selftest_result vit_export_selftest_result;

/* All functions, by version. */
typedef struct vit_export_api {
  uint32_t version;            /* VIT_EXPORT_API_VERSION of the library */
  const char* library_version; /* of vit-export, e.g. "0.3.0" */

  /* Statuses. */
  vit_export_code (*status_code)(const vit_export_status* status);
  const char* (*status_message)(const vit_export_status* status);
  const char* (*status_hint)(const vit_export_status* status); /* what to do; may be empty */
  void (*release_status)(vit_export_status* status);

  /* Models. `path` is a file that vit-export has written; `options` may be NULL. */
  vit_export_status* (*create_model)(const char* path, const vit_export_options* options,
                                     vit_export_model** model);
  void (*release_model)(vit_export_model* model);
  vit_export_status* (*get_manifest)(const vit_export_model* model, vit_export_manifest* manifest);
  vit_export_status* (*get_runtime)(const vit_export_model* model, vit_export_runtime* runtime);

  /* Classify images of any sizes: up to `top` classes each, best first. With sigmoid scores all
   * further classes with a score of at least 0.5 are returned too. */
  vit_export_status* (*classify)(const vit_export_model* model, const vit_export_image* images,
                                 size_t count, int32_t top, vit_export_predictions** predictions);
  vit_export_status* (*get_predictions)(const vit_export_predictions* predictions, size_t image,
                                        const vit_export_prediction** classes, size_t* count);
  void (*release_predictions)(vit_export_predictions* predictions);

  /* Compute the features of images, one row each: output "features" (B, D). With `normalize` each
   * row is scaled to length 1. */
  vit_export_status* (*embed)(const vit_export_model* model, const vit_export_image* images,
                              size_t count, int32_t normalize, vit_export_outputs** outputs);
  /* Run float32 pixel_values (B, C, H, W); a height and width of 0 are those of the manifest. */
  vit_export_status* (*run)(const vit_export_model* model, const float* pixel_values, size_t batch,
                            uint32_t height, uint32_t width, vit_export_outputs** outputs);
  /* Prepare images as Python does, to the bit: output "pixel_values", float32 (B, C, H, W). */
  vit_export_status* (*prepare)(const vit_export_preprocess* preprocess,
                                const vit_export_image* images, size_t count,
                                vit_export_outputs** outputs);
  vit_export_status* (*get_output)(const vit_export_outputs* outputs, size_t index,
                                   vit_export_tensor* tensor);
  size_t (*count_outputs)(const vit_export_outputs* outputs);
  void (*release_outputs)(vit_export_outputs* outputs);

  /* Compare the model with a golden file; NULL is the one beside the model, NAME.golden.npz. A
   * model that differs is no error: the result says so. */
  vit_export_status* (*selftest)(const vit_export_model* model, const char* golden,
                                 vit_export_selftest_result** result);
  vit_export_status* (*get_selftest)(const vit_export_selftest_result* result,
                                     vit_export_selftest* selftest);
  void (*release_selftest)(vit_export_selftest_result* result);
} vit_export_api;

/* Returns the table of a version; NULL where this library is older than that version. */
VIT_EXPORT_PUBLIC const vit_export_api* vit_export_get_api(uint32_t version);

#ifdef __cplusplus
}
#endif

#endif /* VIT_EXPORT_H */
