// Classify a picture with an exported int8 file: onnxruntime's C++ API, stb_image, nlohmann's JSON.
//
//     ./classify int8.onnx picture.png
//
// The file's metadata holds `preprocessing`: JSON with `size` [H, W], `resize` (the shorter side before the centre is
// cut out; null brings the picture to `size` as a whole), `interpolation`, `mean` and `std` of each channel, `classes`.
// README.md says how to build it.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#define STB_IMAGE_IMPLEMENTATION
#include <nlohmann/json.hpp>
#include <stb/stb_image.h>

#include <onnxruntime_cxx_api.h>

struct Picture {
  int width, height;
  std::vector<unsigned char> pixels;  // [height, width, 3]
};

Picture read(const std::string& path) {
  int width, height;
  unsigned char* data = stbi_load(path.c_str(), &width, &height, nullptr, 3);
  if (!data) throw std::runtime_error(path + " is no picture: " + stbi_failure_reason());
  Picture picture{width, height, {data, data + 3 * width * height}};
  stbi_image_free(data);
  return picture;
}

double weight(double x, bool bicubic) {  // at distance x from the centre; bicubic with a = -0.5
  x = std::abs(x);
  if (!bicubic) return x < 1 ? 1 - x : 0;
  return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// Along one axis as Pillow does, with which the model was trained: the filter grows with the scale when it shrinks.
// `inner` values lie between neighbours on the axis of length `from`, `outer` times.
std::vector<unsigned char> along(const std::vector<unsigned char>& v, int outer, int from, int to, int inner,
                                 const std::string& method) {
  std::vector<unsigned char> result(static_cast<size_t>(outer) * to * inner);
  const double scale = static_cast<double>(from) / to, spread = std::max(scale, 1.0);
  const double support = (method == "bicubic" ? 2 : 1) * spread;
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale;
    int first = std::max(0, static_cast<int>(centre - support + 0.5)), last;
    std::vector<double> w{1};
    if (method == "nearest") {
      first = static_cast<int>(centre);
    } else {
      last = std::min(from, static_cast<int>(centre + support + 0.5));
      w.clear();
      for (int k = first; k < last; ++k) w.push_back(weight((k - centre + 0.5) / spread, method == "bicubic"));
    }
    const double sum = std::accumulate(w.begin(), w.end(), 0.0);
    for (int o = 0; o < outer; ++o)
      for (int c = 0; c < inner; ++c) {
        double value = 0.5;
        for (size_t k = 0; k < w.size(); ++k) value += w[k] / sum * v[(o * from + first + k) * inner + c];
        result[(o * to + i) * inner + c] = static_cast<unsigned char>(std::clamp(value, 0.0, 255.0));
      }
  }
  return result;
}

Picture resized(Picture p, int width, int height, const std::string& method) {
  if (p.width != width) p = {width, p.height, along(p.pixels, p.height, p.width, width, 3, method)};
  if (p.height != height) p = {width, height, along(p.pixels, 1, p.height, height, 3 * width, method)};
  return p;
}

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: classify MODEL.onnx PICTURE");
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session session(env, argv[1], Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("preprocessing", allocator);
  if (!text) throw std::runtime_error(std::string(argv[1]) + " has no `preprocessing` in its metadata");
  const auto about = nlohmann::json::parse(text.get());
  const int height = about["size"][0], width = about["size"][1];
  const std::string interpolation = about["interpolation"];

  Picture picture = read(argv[2]);
  if (about["resize"].is_null()) {
    picture = resized(picture, width, height, interpolation);
  } else {
    const int shorter = about["resize"], least = std::min(picture.width, picture.height);
    auto side = [&](int length) { return static_cast<int>(static_cast<long long>(shorter) * length / least); };
    picture = resized(picture, side(picture.width), side(picture.height), interpolation);
  }
  const auto left = std::lrint((picture.width - width) / 2.0), top = std::lrint((picture.height - height) / 2.0);
  auto grey = [&](long row, long column, int channel) {  // black around a picture that is smaller than the input
    const bool inside = row >= 0 && row < picture.height && column >= 0 && column < picture.width;
    return inside ? picture.pixels[3 * (row * picture.width + column) + channel] / 255.0f : 0.0f;
  };

  std::vector<float> x(3 * height * width);  // [1, 3, height, width]
  for (int c = 0; c < 3; ++c) {
    const float mean = about["mean"][c], deviation = about["std"][c];
    for (int i = 0; i < height; ++i)
      for (int j = 0; j < width; ++j)
        x[(c * height + i) * width + j] = (grey(top + i, left + j, c) - mean) / deviation;
  }
  const std::array<int64_t, 4> shape{1, 3, height, width};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape.data(), shape.size());
  const auto input_name = session.GetInputNameAllocated(0, allocator);
  const auto output_name = session.GetOutputNameAllocated(0, allocator);
  const char *inputs[] = {input_name.get()}, *outputs[] = {output_name.get()};
  const auto found = session.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, 1);
  const float* logits = found[0].GetTensorData<float>();

  std::vector<size_t> order(found[0].GetTensorTypeAndShapeInfo().GetElementCount());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  for (size_t i = 0; i < std::min<size_t>(5, order.size()); ++i)
    std::printf("%s\t%.3f\n", about["classes"][order[i]].get<std::string>().c_str(), logits[order[i]]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
