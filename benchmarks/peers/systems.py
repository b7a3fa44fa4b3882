"""One function per system that a user could pick: prepare(model, name, batch, folder) writes what it deploys or returns it in memory, open
loads it and returns a function of one tensor. Called by run.py, each system in a process of its own."""

from __future__ import annotations

import pathlib

import torch

from networks import calibration, example


class System:
    """`artifact` is the file that a deployment would ship; None where the system has none and rebuilds in every process."""

    transformers_only = False
    convolutions_only = False
    precision = "int8"
    imports: tuple[str, ...] = ()  # what open() needs, imported before its time is taken

    def prepare(self, model: torch.nn.Module, name: str, batch: int, folder: pathlib.Path) -> pathlib.Path | None:
        return None

    def open(self, artifact: pathlib.Path | None, model, name: str, batch: int, threads: int):
        raise NotImplementedError


class TorchEager(System):
    precision = "fp32"

    def open(self, artifact, model, name, batch, threads):
        return model if name == "bert_base" else model.to(memory_format=torch.channels_last)


class TorchInductor(TorchEager):
    def open(self, artifact, model, name, batch, threads):
        torch._inductor.config.freezing = True
        return torch.compile(model)


class TorchQuant(System):
    imports = ("torchquant",)  # registers the ops

    def qconfig(self):
        import torchquant as tq

        return tq.qconfigs.int8_static()

    def prepare(self, model, name, batch, folder):
        import torchquant as tq

        inputs = example(name, batch)
        prepared = tq.prepare(model, inputs, self.qconfig())
        if any(isinstance(module, tq.FakeQuantize) and not module.spec.dynamic for module in prepared.modules()):
            tq.calibrate(prepared, calibration(name, batch))
        path = folder / "model.pt"
        tq.convert(prepared, inputs).save(path)
        return path

    def open(self, artifact, model, name, batch, threads):
        return torch.jit.load(str(artifact))


class TorchQuantDynamic(TorchQuant):
    transformers_only = True

    def qconfig(self):
        import torchquant as tq

        return tq.qconfigs.int8_dynamic()


class TorchAoFx(System):
    convolutions_only = True

    def prepare(self, model, name, batch, folder):
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = "x86"
        inputs = example(name, batch)
        prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (inputs,))
        for item in calibration(name, batch):
            prepared(item)
        path = folder / "model.pt"
        torch.jit.freeze(torch.jit.trace(convert_fx(prepared), inputs)).save(str(path))
        return path

    def open(self, artifact, model, name, batch, threads):
        torch.backends.quantized.engine = "x86"
        return torch.jit.load(str(artifact))


class TorchAoDynamic(System):
    transformers_only = True

    def open(self, artifact, model, name, batch, threads):
        torch.backends.quantized.engine = "x86"
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


class TorchaoPt2e(System):
    def open(self, artifact, model, name, batch, threads):
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        # Strict: the quantizer finds layers by the modules that they came from, which a plain export does not note.
        exported = torch.export.export(model, (example(name, batch),), strict=True).module()
        prepared = prepare_pt2e(exported, quantizer)
        for item in calibration(name, batch):
            prepared(item)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        torch._inductor.config.freezing = True
        return torch.compile(converted)


class TorchaoDynamic(System):
    transformers_only = True

    def open(self, artifact, model, name, batch, threads):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        # Inductor's freezing stays off: it puts the products into an op that takes seconds each, on a processor with VNNI.
        return torch.compile(model, dynamic=False)


def export_onnx(model, name, batch, folder) -> pathlib.Path:
    path = folder / "float.onnx"
    torch.onnx.export(model, (example(name, batch),), str(path), dynamo=False, opset_version=17, input_names=["x"], output_names=["y"])
    return path


class OnnxRuntime(System):
    imports = ("onnxruntime",)

    def quantize(self, source, target, name, batch):
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self):
                self.items = iter(calibration(name, batch))

            def get_next(self):
                item = next(self.items, None)
                return None if item is None else {"x": item.numpy()}

        ready = source.with_name("ready.onnx")
        quant_pre_process(str(source), str(ready))
        quantize_static(str(ready), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)

    def prepare(self, model, name, batch, folder):
        target = folder / "model.onnx"
        self.quantize(export_onnx(model, name, batch, folder), target, name, batch)
        return target

    def open(self, artifact, model, name, batch, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


class OnnxRuntimeDynamic(OnnxRuntime):
    transformers_only = True

    def quantize(self, source, target, name, batch):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, per_channel=True)


class OpenVino(System):
    imports = ("openvino",)

    def prepare(self, model, name, batch, folder):
        import nncf
        import openvino

        converted = openvino.convert_model(model, example_input=example(name, batch), input=list(example(name, batch).shape))
        kind = nncf.ModelType.TRANSFORMER if name == "bert_base" else None
        items = calibration(name, batch)
        quantized = nncf.quantize(converted, nncf.Dataset(items, lambda item: item.numpy()), model_type=kind, subset_size=len(items))
        path = folder / "model.xml"
        openvino.save_model(quantized, path, compress_to_fp16=False)
        return path

    def open(self, artifact, model, name, batch, threads):
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(core.read_model(artifact), "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()
        return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0])


SYSTEMS: dict[str, System] = {
    "torchquant": TorchQuant(),
    "torchquant_dynamic": TorchQuantDynamic(),
    "torch_eager_fp32": TorchEager(),
    "torch_inductor_fp32": TorchInductor(),
    "torch_ao_fx": TorchAoFx(),
    "torch_ao_dynamic": TorchAoDynamic(),
    "torchao_pt2e_inductor": TorchaoPt2e(),
    "torchao_dynamic_w8a8": TorchaoDynamic(),
    "onnxruntime": OnnxRuntime(),
    "onnxruntime_dynamic": OnnxRuntimeDynamic(),
    "openvino_nncf": OpenVino(),
}


def systems_for(network: str) -> list[str]:
    transformer = network == "bert_base"
    return [
        name for name, system in SYSTEMS.items()
        if not (system.transformers_only and not transformer) and not (system.convolutions_only and transformer)
    ]  # fmt: skip
