/* Calls the C interface as nobody should: null pointers, wrong sizes, absurd images. Every call
 * must return a status with a message. Also shows that the header is plain C99.
 *
 *   misuse MODEL
 */
#include <stdio.h>
#include <string.h>
#include <vit_export/vit_export.h>

static const vit_export_api* api;
static int failures = 0;

/* Expects a status of that code, with a message. */
static void expect(vit_export_code code, vit_export_status* status, const char* what) {
  if (!status || api->status_code(status) != code || !*api->status_message(status)) {
    printf("%s: code %d, expected %d (%s)\n", what, (int)api->status_code(status), (int)code,
           api->status_message(status));
    ++failures;
  }
  api->release_status(status);
}

static void expect_ok(vit_export_status* status, const char* what) {
  if (status) {
    printf("%s: %s\n", what, api->status_message(status));
    ++failures;
    api->release_status(status);
  }
}

static void misuse_images(const vit_export_model* model) {
  static const uint8_t pixels[30 * 30 * 3];
  vit_export_predictions* predictions = NULL;
  vit_export_outputs* outputs = NULL;
  const vit_export_image good = {pixels, 30, 30, 3, 0};
  vit_export_image image = good;
  expect(VIT_EXPORT_IMAGE_ERROR, api->classify(model, &good, 0, 5, &predictions), "no images");
  expect(VIT_EXPORT_USAGE_ERROR, api->classify(model, NULL, 1, 5, &predictions), "null images");
  expect(VIT_EXPORT_USAGE_ERROR, api->classify(NULL, &good, 1, 5, &predictions), "null model");
  expect(VIT_EXPORT_USAGE_ERROR, api->classify(model, &good, 1, 5, NULL), "null result");
  expect(VIT_EXPORT_INPUT_ERROR, api->classify(model, &good, 1, 0, &predictions), "top 0");
  image.pixels = NULL;
  expect(VIT_EXPORT_IMAGE_ERROR, api->classify(model, &image, 1, 5, &predictions), "null pixels");
  image = good;
  image.width = 0;
  expect(VIT_EXPORT_IMAGE_ERROR, api->classify(model, &image, 1, 5, &predictions), "width 0");
  image.width = image.height = 0xFFFFFFFFu;
  expect(VIT_EXPORT_IMAGE_ERROR, api->embed(model, &image, 1, 0, &outputs), "huge image");
  image.channels = 0xFFFFFFFFu;
  expect(VIT_EXPORT_IMAGE_ERROR, api->embed(model, &image, 1, 0, &outputs), "huge channels");
  image = good;
  image.channels = 2;
  expect(VIT_EXPORT_IMAGE_ERROR, api->embed(model, &image, 1, 0, &outputs), "2 channels");
  image = good;
  image.stride = 89;
  expect(VIT_EXPORT_IMAGE_ERROR, api->embed(model, &image, 1, 0, &outputs), "short stride");
  image.stride = (size_t)-1;
  expect(VIT_EXPORT_IMAGE_ERROR, api->embed(model, &image, 1, 0, &outputs), "huge stride");
  expect_ok(api->classify(model, &good, 1, 1000, &predictions), "top 1000");
  const vit_export_prediction* classes = NULL;
  size_t count = 0;
  expect_ok(api->get_predictions(predictions, 0, &classes, &count), "predictions");
  if (count != 10) ++failures;
  expect(VIT_EXPORT_USAGE_ERROR, api->get_predictions(predictions, 1, &classes, &count), "image 1");
  api->release_predictions(predictions);
}

static void misuse_run(const vit_export_model* model) {
  static float values[3 * 32 * 32];
  vit_export_outputs* outputs = NULL;
  expect(VIT_EXPORT_INPUT_ERROR, api->run(model, NULL, 1, 0, 0, &outputs), "null values");
  expect(VIT_EXPORT_INPUT_ERROR, api->run(model, values, 0, 0, 0, &outputs), "batch 0");
  expect(VIT_EXPORT_INPUT_ERROR, api->run(model, values, (size_t)-1, 0, 0, &outputs), "huge batch");
  expect(VIT_EXPORT_INPUT_ERROR, api->run(model, values, 1, 16, 16, &outputs), "another size");
  values[7] = 1e9f;
  expect(VIT_EXPORT_INPUT_ERROR, api->run(model, values, 1, 0, 0, &outputs), "not normalised");
  values[7] = values[0] / values[0]; /* NaN */
  expect(VIT_EXPORT_INPUT_ERROR, api->run(model, values, 1, 0, 0, &outputs), "NaN");
  values[7] = 0;
  expect_ok(api->run(model, values, 1, 0, 0, &outputs), "run");
  vit_export_tensor tensor;
  expect(VIT_EXPORT_USAGE_ERROR, api->get_output(outputs, 99, &tensor), "output 99");
  api->release_outputs(outputs);
}

static void misuse_options(const char* path) {
  vit_export_model* model = NULL;
  vit_export_options options;
  memset(&options, 0, sizeof options);
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "struct_size 0");
  options.struct_size = sizeof options;
  options.threads = -1;
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "threads -1");
  options.threads = 0;
  options.device = -1;
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "device -1");
  options.device = 0;
  options.provider = "cudda";
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "provider cudda");
  options.provider = "cuda";
  expect(VIT_EXPORT_PROVIDER_ERROR, api->create_model(path, &options, &model), "provider cuda");
  options.provider = NULL;
  options.provider_option_count = 1;
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "null names");
  const char *const names[] = {"enable"}, *const values[] = {"1"};
  options.provider_option_names = names;
  options.provider_option_values = values;
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "options of the CPU");
  options.provider_option_count = 0;
  options.device = 1;
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "second CPU");
  options.provider = "openvino";
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "second of OpenVINO");
  options.provider = "migraphx"; /* which counts them, but is not built in */
  expect(VIT_EXPORT_PROVIDER_ERROR, api->create_model(path, &options, &model), "second AMD GPU");
  options.provider = "CPUExecutionProvider";
  options.device = 0;
  options.cpu_fallback = 1;
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &options, &model), "CPU beside the CPU");
  options.provider = NULL;
  options.cpu_fallback = 0;
  options.library = "/no/libonnxruntime.so";
  expect(VIT_EXPORT_PROVIDER_ERROR, api->create_model(path, &options, &model), "no library");
  options.library = "libdl.so.2";
  expect(VIT_EXPORT_PROVIDER_ERROR, api->create_model(path, &options, &model), "another library");
  options.library = NULL;
  /* a caller with a later version of the struct: zero in what this library does not know is fine */
  struct {
    vit_export_options known;
    long later;
  } longer;
  memset(&longer, 0, sizeof longer);
  longer.known.struct_size = sizeof longer;
  expect_ok(api->create_model(path, &longer.known, &model), "later options");
  api->release_model(model);
  longer.later = 1;
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, &longer.known, &model), "later field");
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(NULL, NULL, &model), "null path");
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model("", NULL, &model), "empty path");
  expect(VIT_EXPORT_USAGE_ERROR, api->create_model(path, NULL, NULL), "null model");
  expect(VIT_EXPORT_ARTIFACT_ERROR, api->create_model("/", NULL, &model), "a folder");
}

int main(int count, char** words) {
  (void)count;
  if (vit_export_get_api(0) || vit_export_get_api(VIT_EXPORT_API_VERSION + 1)) ++failures;
  api = vit_export_get_api(VIT_EXPORT_API_VERSION);
  vit_export_model* model = NULL;
  misuse_options(words[1]);
  expect_ok(api->create_model(words[1], NULL, &model), "create_model");
  misuse_images(model);
  misuse_run(model);
  vit_export_manifest manifest;
  memset(&manifest, 0, sizeof manifest);
  expect(VIT_EXPORT_USAGE_ERROR, api->get_manifest(model, &manifest), "manifest of size 0");
  /* an earlier version of the struct: what is behind it stays as it is */
  manifest.struct_size = offsetof(vit_export_manifest, precision);
  manifest.precision = "untouched";
  expect_ok(api->get_manifest(model, &manifest), "earlier manifest");
  if (!manifest.variant || strcmp(manifest.precision, "untouched") != 0) ++failures;
  api->release_model(model);
  api->release_model(NULL);
  api->release_status(NULL);
  api->release_outputs(NULL);
  api->release_predictions(NULL);
  api->release_selftest(NULL);
  printf("%d failures\n", failures);
  return failures != 0;
}
