"""tapeout: a static-graph compiler for transformer circuits.

`import tapeout as rc` gives the circuit's node kinds, matchers, rewrites and samplers under the names that
users of Redwood Research's rust_circuit know. Models are in `tapeout.models`, passes in `tapeout.passes`,
experiments in `tapeout.tasks`.
"""

import tapeout.backends.reference  # noqa: F401 (says how circuits are evaluated)
from tapeout.backends.onnx import OnnxOptions
from tapeout.compiler import (
    Compiled,
    bisect,
    compare,
    compile,
    compile_many,
    evaluate_many,
    export,
    load,
    values,
    verify,
)
from tapeout.ir import *  # noqa: F403
from tapeout.ir import __all__ as _ir_names
from tapeout.ir.errors import (
    ArtefactError,
    DataError,
    LoweringError,
    MatchError,
    ModelError,
    ModuleBindingError,
    ParseError,
    PassError,
    ShapeError,
    TapeoutError,
    TypeMismatchError,
    UnsupportedError,
)
from tapeout.ir.files.own_version import own_version as _own_version
from tapeout.passes import (
    RandomSampleSpec,
    RunDiscreteVarAllSpec,
    Sampler,
    conform_all_modules,
    count_nodes,
    rename_by_table,
    split_to_concat,
    strip_names,
    substitute_all_modules,
)

__version__ = _own_version()

__all__ = [
    *_ir_names,
    "ArtefactError",
    "Compiled",
    "DataError",
    "LoweringError",
    "MatchError",
    "ModelError",
    "ModuleBindingError",
    "OnnxOptions",
    "ParseError",
    "PassError",
    "RandomSampleSpec",
    "RunDiscreteVarAllSpec",
    "Sampler",
    "ShapeError",
    "TapeoutError",
    "TypeMismatchError",
    "UnsupportedError",
    "__version__",
    "bisect",
    "compare",
    "compile",
    "compile_many",
    "conform_all_modules",
    "count_nodes",
    "evaluate_many",
    "export",
    "load",
    "rename_by_table",
    "split_to_concat",
    "strip_names",
    "substitute_all_modules",
    "values",
    "verify",
]
