//! The names a checkpoint's pickle may use, and what they mean to this reader.

use safetensors::Dtype;

use super::pickle::Rebuild;

/// What a name in a pickle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A dictionary's class.
    Dict,
    /// A function that makes a tensor.
    Rebuild(Rebuild),
    /// A class of storages, by their elements' type.
    Storage(Dtype),
    /// Something harmless that is of no use here: what it makes is not made.
    Ignored,
}

/// Names of no use whose presence is no cause for alarm: (module, names). Training runs leave them
/// beside the weights.
const IGNORED: [(&str, &[&str]); 16] = [
    (
        "torch",
        &[
            "Size", "device", "dtype", "float16", "float32", "float64", "bfloat16", "int64",
            "int32", "int16", "int8", "uint8", "bool", "layout", "strided",
        ],
    ),
    ("torch._utils", &["_rebuild_device_tensor_from_numpy"]),
    ("torch.serialization", &["_get_layout"]),
    ("torch._C", &["_rebuild_dtype"]),
    ("collections", &["Counter", "deque"]),
    ("builtins", BUILTINS),
    ("__builtin__", BUILTINS),
    ("_codecs", &["encode"]),
    ("copyreg", &["_reconstructor"]),
    ("copy_reg", &["_reconstructor"]),
    (
        "datetime",
        &["datetime", "date", "time", "timedelta", "timezone"],
    ),
    (
        "pathlib",
        &[
            "Path",
            "PosixPath",
            "WindowsPath",
            "PurePosixPath",
            "PureWindowsPath",
        ],
    ),
    ("argparse", &["Namespace"]),
    (
        "numpy",
        &[
            "ndarray", "dtype", "bool_", "float32", "float64", "int32", "int64",
        ],
    ),
    ("numpy.core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy._core.multiarray", &["_reconstruct", "scalar"]),
];

/// Python's own types (its functions, such as `eval`, are not among them).
const BUILTINS: &[&str] = &[
    "set",
    "frozenset",
    "list",
    "tuple",
    "int",
    "long",
    "float",
    "complex",
    "bool",
    "str",
    "unicode",
    "bytes",
    "bytearray",
    "object",
    "slice",
    "range",
    "xrange",
    "NoneType",
];

/// Packages whose classes hold a training run's settings and history.
const IGNORED_PACKAGES: [&str; 3] = ["omegaconf.", "mmengine.config.", "mmengine.logging."];

/// What `module.name` means; `None` for a name that no checkpoint needs.
pub fn meaning(module: &str, name: &str) -> Option<Meaning> {
    match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => {
            Some(Meaning::Dict)
        }
        ("torch._utils", _) => rebuild(name).map(Meaning::Rebuild),
        ("torch.nn.parameter" | "torch", "Parameter") => Some(Meaning::Rebuild(Rebuild::Parameter)),
        ("torch" | "torch.cuda" | "torch.storage", _) if name.ends_with("Storage") => {
            storage(name).map(Meaning::Storage)
        }
        _ => None,
    }
    .or_else(|| is_ignored(module, name).then_some(Meaning::Ignored))
}

fn rebuild(name: &str) -> Option<Rebuild> {
    match name {
        "_rebuild_tensor" | "_rebuild_tensor_v2" => Some(Rebuild::Tensor),
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => Some(Rebuild::Parameter),
        "_rebuild_tensor_v3" => Some(Rebuild::Unsupported("_rebuild_tensor_v3")),
        "_rebuild_qtensor" => Some(Rebuild::Unsupported("_rebuild_qtensor")),
        "_rebuild_sparse_tensor" => Some(Rebuild::Unsupported("_rebuild_sparse_tensor")),
        "_rebuild_meta_tensor_no_storage" => {
            Some(Rebuild::Unsupported("_rebuild_meta_tensor_no_storage"))
        }
        _ => None,
    }
}

/// The element type of a storage class of PyTorch.
fn storage(name: &str) -> Option<Dtype> {
    Some(match name {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" | "UntypedStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

fn is_ignored(module: &str, name: &str) -> bool {
    IGNORED
        .iter()
        .any(|(known, names)| *known == module && names.contains(&name))
        || IGNORED_PACKAGES
            .iter()
            .any(|package| module.starts_with(package))
}
