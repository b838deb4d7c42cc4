//! The tensors in a pickle's objects: of every dictionary at any depth, and of whole modules (`torch.save(model)`,
//! TorchScript), whose parameters are found among their attributes.

use std::collections::{HashMap, HashSet, VecDeque};

use safetensors::Dtype;

use super::pickle::{Id, Object, Objects};

/// Depth of modules within modules, and of dictionaries within dictionaries, that are looked into.
const MAX_DEPTH: usize = 64;

/// Bytes of names and places that are kept at most, so that objects that are shared, or in a cycle, stay small.
const MAX_NAMES: usize = 256 << 20;

/// Dimensions of a tensor at most, which is libtorch's own limit.
const MAX_DIMENSIONS: usize = 64;

/// Tensors that lie together under names.
pub(super) struct Dictionary<'a> {
    /// The keys that lead there, joined by dots; empty for the top.
    pub(super) path: String,
    pub(super) tensors: Vec<(String, StoredTensor<'a>)>,
}

/// A tensor as the pickle describes it.
pub(super) struct StoredTensor<'a> {
    pub(super) storage: &'a str,
    pub(super) dtype: Dtype,
    /// In elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Every dictionary that holds tensors, and every module, the outermost first.
///
/// # Errors
/// More objects, or longer names, than any checkpoint has.
pub(super) fn dictionaries<'a>(objects: &Objects<'a>) -> Result<Vec<Dictionary<'a>>, String> {
    let mut walk = Walk { objects, left: MAX_NAMES };
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut queue = VecDeque::from([(objects.root, String::new(), 0)]);
    while let Some((id, path, depth)) = queue.pop_front() {
        if depth > MAX_DEPTH || !seen.insert(id) || tensor(objects, id).is_some() {
            continue;
        }
        let module = walk.module(id)?;
        if !module.is_empty() {
            found.push(Dictionary { path, tensors: module });
            continue;
        }
        let mut tensors = Vec::new();
        for (key, value) in walk.entries(id)? {
            let number = || objects.count(key).map(|number| number.to_string());
            match (objects.text(key), tensor(objects, value)) {
                (Some(key), Some(tensor)) => tensors.push((walk.joined("", key)?, tensor)),
                (None, Some(_)) => {}
                (_, None) if !walk.holds(value) => {}
                (key, None) => {
                    if let Some(key) = key.map(str::to_owned).or_else(number) {
                        queue.push_back((value, walk.joined(&path, &key)?, depth + 1));
                    }
                }
            }
        }
        for (number, part) in objects.sequence(id).iter().enumerate() {
            if walk.holds(*part) {
                queue.push_back((*part, walk.joined(&path, &number.to_string())?, depth + 1));
            }
        }
        if let Object::Instance(instance) = objects.get(id)
            && let Some(state) = instance.state
        {
            queue.push_back((state, walk.joined(&path, "")?, depth + 1));
        }
        if !tensors.is_empty() {
            found.push(Dictionary { path, tensors });
        }
    }
    Ok(found)
}

/// What is looked through, and how many bytes of names may still be kept.
struct Walk<'o, 'a> {
    objects: &'o Objects<'a>,
    left: usize,
}

impl<'a> Walk<'_, 'a> {
    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(bytes).ok_or("more tensors, or longer names, than any checkpoint has")?;
        Ok(())
    }

    /// `path.key`, or the one that is not empty.
    fn joined(&mut self, path: &str, key: &str) -> Result<String, String> {
        self.spend(64 + path.len() + key.len())?;
        Ok(joined(path, key))
    }

    /// Whether anything can be below.
    fn holds(&self, id: Id) -> bool {
        match self.objects.get(id) {
            Object::Sequence(parts) => !parts.is_empty(),
            Object::Pairs(pairs) => !pairs.is_empty(),
            Object::Instance(_) => true,
            _ => false,
        }
    }

    /// Key and value, also of the pairs `[key, value]` that Python 2 gave to an ordered dictionary.
    fn entries(&mut self, id: Id) -> Result<Vec<(Id, Id)>, String> {
        let mut entries = self.objects.pairs(id).to_vec();
        if let Object::Instance(instance) = self.objects.get(id)
            && self.objects.global(instance.class) == Some(("collections", "OrderedDict"))
        {
            let listed = self.objects.sequence(instance.arguments).first().map(|list| self.objects.sequence(*list));
            entries.extend(listed.into_iter().flatten().filter_map(|pair| match self.objects.sequence(*pair) {
                [key, value] => Some((*key, *value)),
                _ => None,
            }));
        }
        self.spend(size_of::<(Id, Id)>() * (1 + entries.len()))?;
        Ok(entries)
    }

    /// Values of a dictionary, as far as it has these keys.
    fn attributes(&mut self, id: Id, keys: [&str; 3]) -> Result<Vec<Id>, String> {
        let pairs = self.objects.pairs(id);
        self.spend(pairs.len())?;
        let named = pairs.iter().filter(|(key, _)| self.objects.text(*key).is_some_and(|key| keys.contains(&key)));
        Ok(named.map(|(_, value)| *value).collect())
    }

    /// The tensors of a module by their names in its state dict; none of what is no module.
    fn module(&mut self, id: Id) -> Result<Vec<(String, StoredTensor<'a>)>, String> {
        let objects = self.objects;
        let mut tensors = Vec::new();
        let mut open = vec![(id, String::new(), 0)];
        while let Some((id, path, depth)) = open.pop() {
            let Object::Instance(instance) = objects.get(id) else { continue };
            let Some(state) = instance.state.filter(|_| depth <= MAX_DEPTH) else { continue };
            // A TorchScript module has its parameters and parts among its attributes.
            let is_script = objects.global(instance.class).is_some_and(|(module, _)| module.starts_with("__torch__"));
            let parts = match is_script {
                true => vec![state],
                false => self.attributes(state, ["_parameters", "_buffers", "_modules"])?,
            };
            for part in parts {
                for (key, value) in self.entries(part)? {
                    match (objects.text(key), tensor(objects, value)) {
                        (Some(key), Some(tensor)) => tensors.push((self.joined(&path, key)?, tensor)),
                        (Some(key), None) if self.holds(value) => {
                            open.push((value, self.joined(&path, key)?, depth + 1))
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(tensors)
    }
}

/// `path.key`, or the one that is not empty.
pub(super) fn joined(path: &str, key: &str) -> String {
    match (path, key) {
        ("", only) | (only, "") => only.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// The tensor that `id` is, if it is one.
fn tensor<'a>(objects: &Objects<'a>, id: Id) -> Option<StoredTensor<'a>> {
    let Object::Instance(instance) = objects.get(id) else { return None };
    let (mut function, mut arguments) = (objects.global(instance.class)?, objects.sequence(instance.arguments));
    // A parameter is its tensor, as is one with attributes of its own.
    for _ in 0..4 {
        match (function, arguments) {
            (("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), [data, ..]) => {
                let Object::Instance(inner) = objects.get(*data) else { return None };
                (function, arguments) = (objects.global(inner.class)?, objects.sequence(inner.arguments));
            }
            (("torch._tensor", "_rebuild_from_type_v2"), [inner, _, inner_arguments, ..]) => {
                (function, arguments) = (objects.global(*inner)?, objects.sequence(*inner_arguments));
            }
            _ => break,
        }
    }
    let ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") = function else {
        return None;
    };
    let [storage, offset, shape, strides, rest @ ..] = arguments else { return None };
    let (storage, stored) = storage_key(objects, *storage)?;
    // The third version names the type of a storage of bytes.
    let dtype = match (stored, rest) {
        (Some(dtype), _) => dtype,
        (None, [_, _, dtype, ..]) => named(objects.global(*dtype)?.1)?,
        (None, _) => Dtype::U8,
    };
    let counts = |id: Id| {
        let counts = Some(objects.sequence(id)).filter(|counts| counts.len() <= MAX_DIMENSIONS)?;
        counts.iter().map(|count| objects.count(*count)).collect::<Option<Vec<_>>>()
    };
    let (shape, strides) = (counts(*shape)?, counts(*strides)?);
    (shape.len() == strides.len()).then_some(StoredTensor {
        storage,
        dtype,
        offset: objects.count(*offset)?,
        shape,
        strides,
    })
}

/// A type of PyTorch by its name.
fn named(name: &str) -> Option<Dtype> {
    Some(match name {
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::BOOL,
        _ => return None,
    })
}

/// Bytes of an element of every storage.
pub(super) fn element_sizes(objects: &Objects) -> HashMap<String, usize> {
    let stored = (0..objects.all().len()).filter_map(|id| storage_key(objects, id as Id));
    stored.map(|(key, dtype)| (key.to_owned(), dtype.map_or(1, |dtype| dtype.bitsize().div_euclid(8)))).collect()
}

/// A reference to a storage: `('storage', type, key, device, count)`.
fn storage_key<'a>(objects: &Objects<'a>, id: Id) -> Option<(&'a str, Option<Dtype>)> {
    let Object::Persistent(reference) = objects.get(id) else { return None };
    let [kind, class, key, ..] = objects.sequence(*reference) else { return None };
    (objects.text(*kind) == Some("storage")).then_some(())?;
    let class = objects.global(*class).map(|(_, name)| name).or_else(|| objects.text(*class))?;
    let dtype = match class.rsplit('.').next()? {
        "FloatStorage" => Some(Dtype::F32),
        "DoubleStorage" => Some(Dtype::F64),
        "HalfStorage" => Some(Dtype::F16),
        "BFloat16Storage" => Some(Dtype::BF16),
        "LongStorage" => Some(Dtype::I64),
        "IntStorage" => Some(Dtype::I32),
        "ShortStorage" => Some(Dtype::I16),
        "CharStorage" => Some(Dtype::I8),
        "ByteStorage" => Some(Dtype::U8),
        "BoolStorage" => Some(Dtype::BOOL),
        // Of bytes: the tensor says what they are.
        "UntypedStorage" => None,
        _ => return None,
    };
    Some((objects.text(*key)?, dtype))
}
