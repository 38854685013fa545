"""Every key of a configuration, with its default and meaning. Other configurations start from here.

Identity keys make a run what it is and may not change in a workdir: seed, data, codecs, model, transport, times,
objective, teacher, optimizer, ema, posthoc_ema, start. Run keys may: loader, mesh, training, checkpoint, sampling,
evaluation, model.attention, model.remat, codecs.autoencoder, codecs.text_encoder, codecs.image_encoder,
codecs.text_memory, codecs.dtype, codecs.tile, optimizer.decay_steps, posthoc_ema.every, posthoc_ema.dtype. A teacher
may move, but must be the same checkpoint, as a reward's classifier must be the same, and a plugin the same code.

Written by python -m tim_jax.config.page from the dataclasses that the keys are fields of: change those.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder


def get_config():
    config = ConfigDict()

    config.seed = 0  # of initialisation, data order, noise, times and dropout
    config.plugin = ()  # Python files of one's own that add to the tables of objectives, transports, samplers, …

    # What is trained on. Examples are (height, width, channels) images in [-1, 1], or latents.
    config.data = ConfigDict()
    config.data.source = "digits"  # a name in tim_jax.data.SOURCES
    config.data.path = ""  # of the data, or the name of a TensorFlow Datasets data set; embedded sources have none
    # of the images that "latents" were made of, in the same class folders: codecs.image_encoder makes features of them
    config.data.images = ""
    config.data.split = "train"  # the part that is trained on
    # share of "train" that is a part "held_out" instead, chosen by a hash of names; -1: 0.05, or 0 where the data has
    # parts of its own, chosen at the first start
    config.data.held_out_share = 0.0
    config.data.mixture = ()  # in place of one source: ((source, path, weight), …)
    # of every example; with buckets, of samples that no other size is requested for; -1: 32 on CPUs and 64 elsewhere,
    # chosen at the first start
    config.data.height = 8
    config.data.width = 8  # -1: as height
    config.data.channels = 1
    # of a global batch, over all devices; unused where buckets.tokens is given; -1: what suits the devices, chosen at
    # the first start
    config.data.batch_size = 256
    config.data.flip = 0.0  # share of examples that are mirrored
    config.data.random_crop = False  # crop anywhere, not in the middle
    # Native resolution: shapes (height, width) of examples; an image goes to the nearest aspect ratio, is resized to
    # cover it and cropped. Neither table nor area: all examples are height × width, resized and cropped alike. Latents
    # are not resized.
    config.data.buckets = ConfigDict()
    config.data.buckets.table = ()  # ((height, width), …); (): made from the images' own sizes
    config.data.buckets.area = 0  # largest height × width of a bucket that is made
    config.data.buckets.max_buckets = 64  # number of buckets that are made, at most
    # make them so small that shapes too rare for a batch fit too, or else leave these out
    config.data.buckets.keep_rare = False
    # of a global batch, which sets its size by bucket; 0: data.batch_size for any bucket
    config.data.buckets.tokens = 0
    # Of height × width as of buckets:
    config.data.buckets.max_cropped = 0.5  # images that would lose a larger share of their area are not used
    config.data.buckets.enlarge = False  # use images that are too small for every shape
    # Examples are encoded as they are read, by `codecs` (python -m tim_jax.encode does it once, to shards); False: they
    # are what is trained on.
    config.data.encode = False
    # of latents: the autoencoder's scaling_factor, by which a teacher of other latents is known; 0: not known
    config.data.latent_scale = 0.0
    config.data.paired_noise = False  # examples bring the noise that they were made from (python -m tim_jax.pairs)
    config.data.condition_dropout = 0.1  # share of examples trained with the null condition
    config.data.features_width = 0  # width of the image features for alignment; 0: none
    config.data.text_width = 0  # width of text features; used where model.condition is "text"
    config.data.text_tokens = 0  # text tokens of a caption, padding included

    # Pretrained encoders and decoders, as folders of published files: a path, or hf://owner/repository.
    config.codecs = ConfigDict()
    config.codecs.autoencoder = ""  # whose latents are trained on; "": images, or latents that nothing here decodes
    config.codecs.text_encoder = ""  # of captions and prompts; "minilm": all-MiniLM-L6-v2; "stand-in": random weights
    config.codecs.image_encoder = ""  # whose features hidden states are aligned with
    # Captions whose features are computed once and kept in the memory of each process; 0: computed anew in each batch.
    config.codecs.text_memory = 0
    config.codecs.text_states = "last"  # of the text encoder: last or second_to_last
    # Read "ä" of captions and prompts as the escape "\xe4", and all beyond printable ASCII likewise: as published, for
    # published weights only.
    config.codecs.text_escapes = False
    config.codecs.latents = "mean"  # of the autoencoder's distribution for an image: its mean, or a sample
    config.codecs.dtype = "float32"  # of weights and computation, "float32" or "bfloat16"
    # side in pixels of the blended tiles in which larger images are encoded and decoded; 0: none
    config.codecs.tile = 0

    # How examples are read; no number that a run gives depends on it.
    config.loader = ConfigDict()
    config.loader.directory = ""  # of embedded data, indices and bucket plans, on a local disk; "": ~/.cache/tim_jax
    # GiB that indices, tables of sizes, bucket plans and references of evaluations may take there: those used longest
    # ago go; 0: no limit
    config.loader.cache_gib = 50.0
    config.loader.workers = 0  # reading processes of each process; 0: its threads alone
    config.loader.threads = 2  # reading threads of each process, or of each worker
    config.loader.prefetch = 4  # batches read ahead
    config.loader.max_bad_share = 0.01  # share of records that may be unusable before the run stops

    # The network (tim_jax.networks.NETWORKS).
    config.model = ConfigDict()
    config.model.network = "tim"  # a name in tim_jax.networks.NETWORKS
    config.model.size = "S"  # XS, S, B, L, XL, …, of which width, depth, heads and the like are where they are 0
    config.model.width = 0  # D; heads divide it
    config.model.depth = 0  # blocks
    config.model.heads = 0  # H
    config.model.encoder_depth = 0  # block, counted from 1, whose output is aligned with image features
    config.model.patch_size = 2  # side of a patch, in positions
    config.model.condition = "class"  # "class" or "text"
    config.model.num_classes = 10  # for "class"; label num_classes is the null condition
    # The last so many blocks and the final layer see r alone for the times, all before them t alone (Decoupled
    # MeanFlow, arXiv 2510.24474); 0: all see both
    config.model.decoupled_depth = 0
    # Tokens in front of those of the image that carry conditions, beside the modulation (improved MeanFlow, arXiv
    # 2512.02012): of the class, and where guidance is an input as many for its scale and for its interval.
    config.model.class_tokens = 0
    config.model.guidance_tokens = 0
    config.model.projector_width = 2048  # hidden width of the alignment head
    # "xla", or with memory linear in tokens "blockwise" and "pallas" (kernels; elsewhere blockwise); "auto": by tokens
    config.model.attention = "auto"
    # What the backward pass computes again. "none": nothing, every activation is kept. "dots": neither products of
    # weights nor blockwise attention; as fast as "none" in two thirds of its memory. "attention": products, but not
    # blockwise attention; with it, a third of the memory or less. "full": all of a block but its input, a quarter more
    # operations than "none".
    config.model.remat = "dots"
    # DiffusionBlocks (arXiv 2506.14202): slices of the depth, each of which serves an interval of times of equal
    # probability. A step trains slice step mod slices, and only its layers run; so do they in a step of sampling.
    config.model.slices = 1
    config.model.dropout = 0.0  # on residual branches
    config.model.dtype = "float32"  # compute type, "float32" or "bfloat16"; parameters are float32
    config.model.bottleneck = 0  # hidden width of each block's adaLN
    config.model.conditioning = "t-r"  # "t-r", "r", "t,r", "t,t-r", "r,t-r" or "t,r,t-r": what the interval embeds
    config.model.separate_interval_embedder = True  # an embedder of its own for the interval, else that of t
    config.model.interval_aware = True  # interval-aware attention: the interval's embedding enters q, k and v
    config.model.qk_norm = True  # norm of queries and keys
    # "official": the published order. Weights that were trained in the other one reach the published code only where
    # all examples are squares; it cannot be chosen after training.
    config.model.rope_order = "row_major"
    # Attend to a caption's own tokens; False: to as many as the longest caption of the batch has, as published, for
    # published weights only. The masks of conditions say so, wherever these are made.
    config.model.use_text_mask = True
    config.model.interval = "modulation"  # where the embedding of t - r enters: "modulation", or "tokens": in context
    # The time that the network sees, "t" or "1-t", and whether its output is -F: "1-t" and True for published weights
    # whose time runs from noise (0) to data (1) and that predict data - noise. Neither changes what training can reach.
    config.model.clock = "t"
    config.model.negated = False
    # How tokens know their places: "sincos", as published, for squares alone; "interpolated": the same embedding, its
    # places stretched over a square of positions_side patches; "rope": rotary in its place
    config.model.positions = "sincos"
    config.model.positions_side = 16  # patches along a side of the squares that the weights were trained on
    config.model.learn_sigma = False  # the final layer has as many channels more, for a variance, which is left out
    config.model.shift = True  # whether modulations shift, beside their scales and gates
    config.model.patch_bottleneck = 0  # the width through which patches are embedded
    config.model.context_start = 0  # blocks before the tokens of conditions join those of the image
    # Blocks of a decoder, after the `depth` of the encoder; states are tapped and aligned in the encoder alone.
    config.model.decoder_depth = 0
    config.model.decoder_width = 0  # of the decoder; 0: that of `size`, or `width`
    config.model.decoder_heads = 0  # of the decoder; 0: those of `size`, or `heads`

    # The path between data and noise (tim_jax.transitions.TRANSPORTS).
    config.transport = ConfigDict()
    config.transport.name = "ot_fm"  # ot_fm, trigflow, cosine, vp, ddpm, ve, edm
    config.transport.sigma_d = 0.5  # standard deviation of the data; used by edm
    # standard deviation of the noise ε, a factor of σ_t: 2 for JiT's images of 512 × 512
    config.transport.noise_std = 1.0
    config.transport.augmented_dimensions = 0  # D of PFGM++, whose noise has heavier tails; 0: standard normal noise
    # share of the time domain below which the network is told the lower edge of the interval that a time lies in; 0:
    # every time itself
    config.transport.shared_below = 0.0
    config.transport.shared_intervals = 5  # how many intervals these are
    config.transport.prediction = "F"  # what the network's output stands for: F, x (data), noise or velocity (dx_t/dt)
    config.transport.prediction_clip = 0.05  # of x: σ_t, and of noise: α_t, by which F divides, are at least this
    # c of γ(t) z, γ = c √(2 u (1 − u)), u the share of the time domain (`latent.py`); 0: none
    config.transport.gamma = 0.0

    # The loss of an example. Here and in `times`, keys that are None are as the named objective has them.
    config.objective = ConfigDict()
    config.objective.name = "tim"  # a name in tim_jax.transitions.objectives.table.OBJECTIVES
    # of noise with data
    config.objective.coupling = ConfigDict()
    # none: independent noise; or a name in COUPLINGS: super_resolution, inpainting, colourisation
    config.objective.coupling.task = placeholder(str)
    # standard deviation of the noise on the degraded image, or where pixels are missing
    config.objective.coupling.scale = placeholder(float)
    config.objective.coupling.factor = placeholder(int)  # of super_resolution: positions along a side that become one
    config.objective.coupling.missing = placeholder(float)  # of inpainting: share of the area that is missing
    # of examples with r ≠ t: eulerian (dF/dt), lagrangian (∂F/∂r and a velocity where jumps end), semigroup (two
    # jumps), annealed (two jumps, and dF/dt once the first has no length any more)
    config.objective.consistency = placeholder(str)
    # "teacher": its velocity takes that of the data's place, in all examples. Otherwise that along which base' and
    # dF/dt are taken: "data", "target", "head", "online" or the name of an EMA. For "lagrangian" that with which jumps
    # end: "online" or the name of an EMA, else the teacher's.
    config.objective.velocity = placeholder(str)
    # eulerian, lagrangian and annealed
    config.objective.derivative = placeholder(str)  # dF/dt: "jvp" (exact) or "dde" (central difference)
    config.objective.epsilon = placeholder(float)  # half step of "dde", in units of t
    config.objective.tangent = ConfigDict()
    config.objective.tangent.normalise = placeholder(float)  # c of g/(‖g‖ + c), the change of F; 0: none
    config.objective.tangent.total = placeholder(bool)  # ‖g‖ is the root of a sum of squares, not of their mean
    config.objective.tangent.clip = placeholder(float)  # elements of g are kept within ± this; 0: they are not
    # p of 1 − (1 − u)^p, which multiplies g, u being the share of the time domain; 0: none
    config.objective.tangent.relaxation = placeholder(float)
    config.objective.tangent.bounded = placeholder(bool)  # g over 1 + (B/Ḃ)²
    config.objective.tangent.warmup_steps = placeholder(int)  # over which dF/dt sets in; 0: none
    # the same as a share of all training steps, in place of warmup_steps; 0: none
    config.objective.tangent.warmup_share = placeholder(float)
    config.objective.tangent.max_share = placeholder(float)  # of dF/dt, once it has set in
    # over which dF/dt gets a gradient; 0: never, 1: from the second step on
    config.objective.tangent.differentiate_steps = placeholder(int)
    # semigroup and annealed
    config.objective.bootstrap = ConfigDict()
    config.objective.bootstrap.ema = placeholder(str)  # whose two jumps are the target: "online" or the name of an EMA
    # where the first ends: half, uniform, alpha (after the share α of the interval)
    config.objective.bootstrap.split = placeholder(str)
    # what makes the first: network, velocity (of the data, guided where targets are)
    config.objective.bootstrap.first = placeholder(str)
    config.objective.bootstrap.alpha = ConfigDict()
    # constant, linear, cosine, logarithmic, sigmoid, exponential
    config.objective.bootstrap.alpha.schedule = placeholder(str)
    config.objective.bootstrap.alpha.initial = placeholder(float)
    config.objective.bootstrap.alpha.final = placeholder(float)  # with 'constant' it always has this value
    config.objective.bootstrap.alpha.start_step = placeholder(int)  # until which it has its initial value
    config.objective.bootstrap.alpha.end_step = placeholder(int)  # from which on it has its final one
    # start and end as shares of all training steps, in place of start_step and end_step
    config.objective.bootstrap.alpha.start_share = placeholder(float)
    config.objective.bootstrap.alpha.end_share = placeholder(float)
    config.objective.bootstrap.alpha.gamma = placeholder(float)  # γ, the steepness of the sigmoid
    config.objective.bootstrap.alpha.clamp = placeholder(float)  # how near to 0 or 1 it counts as 0 or 1
    # none, alpha (losses of examples with r ≠ t times α, while it is above 0), rate (of the difference per time, by the
    # error of which examples are weighted)
    config.objective.bootstrap.weighting = placeholder(str)
    config.objective.bootstrap.clip = placeholder(float)  # targets are kept within ± this; 0: they are not
    # jumps up to this share of the time domain are evaluated at r = t
    config.objective.bootstrap.min_interval = placeholder(float)
    # of Heun's method along the teacher that make the first jump; 0: none
    config.objective.bootstrap.solver_steps = placeholder(int)
    # of pairs, β in √(1 − β²) ε + β ξ, the noise that takes the place of the pair's own ε, ξ being fresh
    config.objective.refresh = ConfigDict()
    config.objective.refresh.schedule = placeholder(str)  # constant, linear, cosine, logarithmic, sigmoid, exponential
    config.objective.refresh.initial = placeholder(float)
    config.objective.refresh.final = placeholder(float)  # with 'constant' it always has this value
    config.objective.refresh.start_step = placeholder(int)  # until which it has its initial value
    config.objective.refresh.end_step = placeholder(int)  # from which on it has its final one
    # start and end as shares of all training steps, in place of start_step and end_step
    config.objective.refresh.start_share = placeholder(float)
    config.objective.refresh.end_share = placeholder(float)
    config.objective.refresh.gamma = placeholder(float)  # γ, the steepness of the sigmoid
    config.objective.refresh.clamp = placeholder(float)  # how near to 0 or 1 it counts as 0 or 1
    # weights
    config.objective.weight = ConfigDict()
    config.objective.weight.kernel = placeholder(str)  # constant, reciprocal, sqrt, square, soft_min_snr, sine, tan
    # τ, of time in the weight: time, share (of the time domain), tan, odds, noise_to_signal
    config.objective.weight.scale = placeholder(str)
    config.objective.weight.difference = placeholder(bool)  # weight by τ(t) − τ(r); False: by τ(t)
    config.objective.weight.sigma_d = placeholder(float)  # σ_d of the kernel
    config.objective.adaptive = ConfigDict()
    config.objective.adaptive.power = placeholder(float)  # examples are divided by (own loss + offset)^power; 0: not
    config.objective.adaptive.offset = placeholder(float)
    # the offset is for sums over the values of an example, not means
    config.objective.adaptive.total = placeholder(bool)
    config.objective.adaptive.equal = placeholder(bool)  # examples with r = t are weighted, too
    config.objective.learned_weight = placeholder(bool)  # e^{−u(t)} L + u(t), u learned
    # c of log(e^{−u(t, r)} L + c) + u(t, r), which takes its place; 0: nothing does
    config.objective.learned_offset = placeholder(float)
    # further terms
    config.objective.direction = placeholder(str)  # axis of the cosine term: none, channels, image (all axes)
    config.objective.direction_weight = placeholder(float)
    config.objective.direction_equal = placeholder(bool)  # examples with r = t alone have it
    config.objective.head_weight = placeholder(float)  # of a second prediction of v by a head of its own; 0: none
    # of the cosine to image features of a pretrained encoder; 0: none
    config.objective.alignment_weight = placeholder(float)
    config.objective.perceptual = ConfigDict()
    config.objective.perceptual.weight = placeholder(float)  # λ; 0: none
    # φ: random_convolutions, pyramid, or a name that a plugin adds
    config.objective.perceptual.features = placeholder(str)
    # above which there is no such term, as a share of the time domain
    config.objective.perceptual.max_time = placeholder(float)
    # terms on samples of the student
    config.objective.rollout = ConfigDict()
    config.objective.rollout.max_jumps = placeholder(int)  # of which the last alone has a gradient
    # share of examples that jump from noise, the others from noised data
    config.objective.rollout.from_noise = placeholder(float)
    config.objective.matching = ConfigDict()
    config.objective.matching.weight = placeholder(float)  # of the student's term; 0: none
    # vsd (variational score distillation), sim (score implicit matching)
    config.objective.matching.gradient = placeholder(str)
    # that "vsd" lowers: rkl (reverse KL) or, by a discriminator's density ratio, kl, js (Jensen–Shannon), sf (softened
    # reverse KL), neyman, sh (squared Hellinger), jf (Jeffreys)
    config.objective.matching.divergence = placeholder(str)
    # of equal ranges of the noise level, in each of which the density ratio has the mean 1; 0: none
    config.objective.matching.bins = placeholder(int)
    config.objective.matching.offset = placeholder(float)  # c of "sim"
    # Times of samples are drawn as `times` says, but for these shares of the draws at its ends.
    config.objective.matching.min_quantile = placeholder(float)
    config.objective.matching.max_quantile = placeholder(float)
    # what the auxiliary network's error is one of: F, or x (the data), (σ_t/C_t)² times as large
    config.objective.matching.fit = placeholder(str)
    # how x̂_S is trained
    config.objective.matching.network = ConfigDict()
    # 0: optimizer.learning_rate, with the same schedule; frozen parameters stay so
    config.objective.matching.network.learning_rate = placeholder(float)
    config.objective.matching.network.updates = placeholder(int)  # for each update of the online network
    # decay of an EMA of its weights, which then stands for it wherever it does not learn; 0: none
    config.objective.matching.network.average = placeholder(float)
    config.objective.adversary = ConfigDict()
    config.objective.adversary.weight = placeholder(float)  # of the student's term; 0: none
    config.objective.adversary.loss = placeholder(str)  # non_saturating, hinge
    # whose states the heads see: teacher, or score, the network of objective.matching
    config.objective.adversary.trunk = placeholder(str)
    # of the trunk, counted from 1, after each of which there is a head
    config.objective.adversary.blocks = placeholder(tuple)
    config.objective.adversary.width = placeholder(int)  # of the heads
    # of the times to which samples and data are noised: times (that of t), logit_normal, log_normal, arctan_normal or
    # uniform
    config.objective.adversary.distribution = placeholder(str)
    # of the normal in logit_normal, log_normal and arctan_normal
    config.objective.adversary.P_mean = placeholder(float)
    config.objective.adversary.P_std = placeholder(float)
    config.objective.adversary.r1_weight = placeholder(float)  # γ of the approximate R1; 0: none
    config.objective.adversary.r1_noise = placeholder(float)  # s of the same
    # of the heads' loss in what the trunk "score" learns; 0: it learns nothing from it
    config.objective.adversary.trunk_weight = placeholder(float)
    # how the heads are trained
    config.objective.adversary.network = ConfigDict()
    # 0: optimizer.learning_rate, with the same schedule; frozen parameters stay so
    config.objective.adversary.network.learning_rate = placeholder(float)
    config.objective.adversary.network.updates = placeholder(int)  # for each update of the online network
    # decay of an EMA of its weights, which then stands for it wherever it does not learn; 0: none
    config.objective.adversary.network.average = placeholder(float)
    config.objective.reward = ConfigDict()
    # r: brightness, classifier, similarity, or a name that a plugin adds
    config.objective.reward.name = placeholder(str)
    config.objective.reward.weight = placeholder(float)  # λ; 0: none
    config.objective.reward.margin = placeholder(float)  # m, above which a reward has no gradient; 0: none
    # the file of the classifier that judges, as python -m tim_jax.classify writes it
    config.objective.reward.classifier = placeholder(str)
    # guided targets
    config.objective.guidance = ConfigDict()
    config.objective.guidance.w_gt = placeholder(float)  # 1 with w_cond = 0: none
    config.objective.guidance.w_cond = placeholder(float)
    config.objective.guidance.t_low = placeholder(float)  # times, in units of t, in which targets are guided
    config.objective.guidance.t_high = placeholder(float)
    config.objective.guidance.start_step = placeholder(int)
    config.objective.guidance.ema = placeholder(str)  # by which weights: the name of an EMA, or "online"
    config.objective.input_guidance = ConfigDict()
    # scales 1 … max_scale are an input of the network; 1: none
    config.objective.input_guidance.max_scale = placeholder(float)
    config.objective.input_guidance.power = placeholder(float)  # they are drawn from scale^−power
    # twin_flow alone has it
    config.objective.twin = ConfigDict()
    config.objective.twin.share_short = placeholder(float)  # share of examples with short jumps
    # N, that a jump shall agree with, after a first step along the velocity
    config.objective.twin.jumps = placeholder(int)
    config.objective.twin.step = placeholder(float)  # of that, as a share of the time domain
    config.objective.twin.ema = placeholder(str)  # whose jumps these are: "online" or the name of an EMA
    config.objective.twin.clip = placeholder(float)  # elements of a change of F are kept within ± this
    config.objective.twin.match_weight = placeholder(float)  # of distribution matching
    # times of the grid that t is on; difference_transition_matching alone has it
    config.objective.transitions = placeholder(int)
    # low_noise_contrastive alone has it
    config.objective.contrast = ConfigDict()
    config.objective.contrast.share = placeholder(float)  # of examples with little noise
    config.objective.contrast.max_time = placeholder(float)  # little noise is below this share of the time domain
    config.objective.contrast.temperature = placeholder(float)
    config.objective.contrast.weight = placeholder(float)
    # imm alone has it
    config.objective.moments = ConfigDict()
    config.objective.moments.particles = placeholder(int)  # M examples of a group, with the same times
    config.objective.moments.halvings = placeholder(int)  # k: from t to the middle it is 1/2^k of the range of σ/α
    config.objective.moments.alpha_power = placeholder(int)  # a of the weight; 1 or 2 in the paper
    config.objective.moments.log_ratio = placeholder(float)  # b of the weight
    config.objective.moments.min_time = placeholder(float)  # the smallest t and s, as shares of the time domain
    config.objective.moments.max_time = placeholder(float)  # the largest t
    # drifting alone has it
    config.objective.drift = ConfigDict()
    config.objective.drift.samples = placeholder(int)  # M examples of a group, with the same condition
    config.objective.drift.queue = placeholder(int)  # examples of each class, and of all, that are remembered
    config.objective.drift.temperatures = placeholder(tuple)  # R, in units of the mean distance
    # ω: above 1 samples drift away from data of all classes as well
    config.objective.drift.guidance = placeholder(float)
    config.objective.trajectory_points = placeholder(int)  # states of a trajectory of the teacher; tbcm and cmt have it
    config.objective.grid = placeholder(str)  # of the states of a trajectory: a name in GRIDS; cmt alone has it
    config.objective.solver_steps = placeholder(int)  # of Heun's method from a state to the next; cmt alone has it
    # of the teacher, uniform from 0, as a share of T_max; velocity_refiner alone has it
    config.objective.max_step = placeholder(float)
    # straightening alone has them
    config.objective.segments = ConfigDict()
    config.objective.segments.count = placeholder(int)
    # a name in tim_jax.transitions.GRIDS but shifted, with so many steps
    config.objective.segments.grid = placeholder(str)
    # times from T_max down to T_min, such as those of grid.json, in place of these
    config.objective.segments.edges = placeholder(tuple)
    config.objective.segments.solver_steps = placeholder(int)  # of Heun's method along the teacher
    # flow_dpo alone has it
    config.objective.preference = ConfigDict()
    config.objective.preference.beta = placeholder(float)  # β, that holds the network to the reference
    # errors are sums over the values of an example, for which β is smaller; False: means
    config.objective.preference.total = placeholder(bool)
    config.objective.preference.error = placeholder(str)  # that β weighs: "F", for which β_t is constant, or "noise"
    config.objective.preference.shared_noise = placeholder(bool)  # of winner and loser; False: each has its own
    # τ of e^{reward/τ}; reward_weighted_regression alone has it
    config.objective.reward_temperature = placeholder(float)

    # The model that some objectives learn from: any run with examples and conditions like this run's, of whatever
    # transport.
    config.teacher = ConfigDict()
    # a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000; "": none, or start.checkpoint for flow_dpo
    config.teacher.checkpoint = ""
    config.teacher.ema = "slow"  # of its weights: the name of an EMA, or "online"
    config.teacher.dtype = "float32"  # of its weights and computation, "float32" or "bfloat16"
    config.teacher.guidance = 1.0  # scale of its velocity's guidance; 1: none
    config.teacher.guidance_low = 0.0  # interval of guidance, as fractions of T_max
    config.teacher.guidance_high = 1.0
    # that guidance acts on, the first so many, as published for SiT and DiT (3); 0: all
    config.teacher.guidance_channels = 0
    config.teacher.weak_checkpoint = ""  # guidance away from this weaker model, not from the null condition
    config.teacher.weak_ema = "slow"

    # The distribution of (t, r).
    config.times = ConfigDict()
    # "default" (the transport's), logit_normal, log_normal, arctan_normal, uniform, log_uniform, u_shaped or max
    config.times.distribution = placeholder(str)
    config.times.P_mean = placeholder(float)  # of the normal in logit_normal, log_normal and arctan_normal
    config.times.P_std = placeholder(float)
    config.times.share_equal = placeholder(float)  # share of examples with r = t; 1.0 is flow matching
    config.times.share_min = placeholder(float)  # share of examples with r = T_min
    # where r = t, t is one draw and not the larger of two, which is nearer to noise
    config.times.single_equal = placeholder(bool)
    config.times.intervals = placeholder(str)  # independent, dyadic, logit_normal, two_means, uniform
    # positions (height × width) that need no resolution shift; 0: none are shifted
    config.times.shift_reference = placeholder(float)

    # The optimizer.
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, muon
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"  # constant, cosine, linear (both to 0 over decay_steps)
    config.optimizer.warmup_steps = 0
    config.optimizer.decay_steps = 0  # counted from step 0, warm-up included; 0: training.steps
    # of AdamW, and with muon of what is no matrix in a block, where AdamW takes Nesterov's step
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-6  # of AdamW's denominators, and of the norms that Muon divides by
    config.optimizer.momentum = 0.95  # of Muon
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip = 1.0  # global gradient norm; 0: no clipping
    config.optimizer.accumulation = 1  # microbatches per step
    # Names of parameters, or beginnings of them, with * for anything: "label_embedder", "blocks/attn", "*/bias".
    config.optimizer.frozen = ()  # stay as they start, such as ("blocks",)
    # Factors of the learning rate, such as (("label_embedder", 10.0),); the first that fits counts.
    config.optimizer.learning_rate_factors = ()
    # Decays of EMAs start low, min(decay, (1 + step)/(10 + step)), so that the first parameters are soon forgotten;
    # False: each decay is the same in all steps.
    config.optimizer.ema_warmup = True

    # Exponential moving averages (EMAs) of the weights, by names of your own: decay per step.
    config.ema = ConfigDict()
    config.ema.slow = 0.9999

    # Post-hoc EMAs (arXiv 2312.02696): power-function EMAs, tracked and stored so that those of other lengths can be
    # made afterwards; "sigma_rel:0.13" names one, wherever an EMA is named.
    config.posthoc_ema = ConfigDict()
    # Standard deviations of what they average over, as shares of the steps so far, such as (0.05, 0.1); (): none.
    config.posthoc_ema.sigma_rel = ()
    # steps between snapshots of them, which all stay; some 50 in a run serve any length
    config.posthoc_ema.every = 1000
    config.posthoc_ema.dtype = "float16"  # of snapshots: float16, bfloat16, float32

    # What the first step starts from: the weights of another run, or, by default, scratch.
    config.start = ConfigDict()
    config.start.checkpoint = ""  # a workdir, or one of its checkpoints, such as WORKDIR/checkpoints/1000
    config.start.ema = "slow"  # of its weights: the name of an EMA, or "online"
    config.start.reinitialise = ()  # parameters that start from scratch all the same, such as ("label_embedder",)

    # Devices per mesh axis; -1: all the rest.
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 0  # 0: chosen by the width of the network; 1 for small ones
    config.mesh.tensor = 1
    config.mesh.sequence = 1
    # Microbatches that this mesh makes of each of optimizer.accumulation, so that a batch fits fewer devices; 0: 1, or
    # what --min-processes needs where processes are missing.
    config.mesh.accumulation = 0

    # The training loop.
    config.training = ConfigDict()
    config.training.steps = 1000
    config.training.log_every = 50  # steps between lines in metrics.jsonl
    config.training.sample_every = 0  # steps between pictures of samples; 0: only at the end
    config.training.sample_steps = (1, 2, 4, 8)  # step counts of those pictures
    config.training.max_nonfinite = 20  # updates in a row that are left out as not finite before the run stops
    config.training.hang_seconds = 300.0  # a step that takes longer, and 10 times the usual, ends the process; 0: none
    # Silent corruption, of devices that compute or remember wrongly (docs/robustness.md):
    # steps between comparisons of replicas, with those of batches after each; 0: neither
    config.training.compare_every = 10
    # steps between those that are made twice and must give the same bits; 0: none
    config.training.recompute_every = 1000
    config.training.recompute_elsewhere = False  # on other devices of the same process; the step is compiled once more
    # "go_back": to what last agreed; "exclude": end with exit code 75 and name the host; "warn": go on with it
    config.training.on_corruption = "go_back"
    config.training.wandb = ""  # Weights & Biases project that metrics go to as well; "": none
    # Folder of compiled programs, so that a second start compiles nothing; a gs:// path serves hosts that come and go.
    # "auto": JAX_COMPILATION_CACHE_DIR, or else ~/.cache/tim_jax/xla ($XDG_CACHE_HOME/tim_jax/xla); "": none are kept.
    config.training.compilation_cache = "auto"
    # GiB that compiled programs in that folder may take, on a local disk: those used longest ago go; 0: no limit. A
    # folder of JAX_COMPILATION_CACHE_DIR has the limit of JAX_COMPILATION_CACHE_MAX_SIZE.
    config.training.compilation_cache_gib = 10.0

    # Checkpoints.
    config.checkpoint = ConfigDict()
    # steps; "auto": again once the last save has ended, within max_share
    config.checkpoint.every = FieldReference(1000, field_type=object)
    # of the time by which saving may hold up the steps, where it is "auto"; 1: no limit
    config.checkpoint.max_share = 0.05
    config.checkpoint.keep = 2  # latest checkpoints that stay; with 1, a damaged one has none before it
    config.checkpoint.keep_every = 0  # multiples of so many steps stay for good; 0: none
    config.checkpoint.resume = ""  # where the workdir has none yet: another's, whose whole state goes on here
    # A folder of every host, from the root, on a disk or in memory (/dev/shm/…), for a second tier that a restart of
    # the same host, or of one with peers that hold the same, goes on from; two of these states must fit. "": none.
    config.checkpoint.local = ""
    # as every, of those in that folder, of which the latest alone stays
    config.checkpoint.local_every = FieldReference("auto", field_type=object)

    # How samples are drawn.
    config.sampling = ConfigDict()
    config.sampling.ema = "slow"  # the weights: the name of an EMA, or "online" for the raw ones
    config.sampling.sampler = "default"  # "default": the objective's, or a name in tim_jax.transitions.SAMPLERS
    config.sampling.grid = "uniform"  # a name in tim_jax.transitions.GRIDS, or "optimal" (python -m tim_jax.grid)
    config.sampling.plan = "sampler"  # the sampler's own, or "learned" (python -m tim_jax.grid --kind=learned)
    config.sampling.shift = 3.0  # of the grid "shifted"; above 1: more steps near noise
    config.sampling.batch_size = 64  # images at once, at most
    config.sampling.guidance = 1.0  # scale; 1: none
    config.sampling.guidance_low = 0.0  # interval of guidance, as fractions of T_max
    config.sampling.guidance_high = 1.0
    # of F that guidance acts on, the first so many; 0: all. 3 of 4: as published for DiT and SiT
    config.sampling.guidance_channels = 0
    # leave the interval's ends out, T_max and so the first step among them: as published
    config.sampling.exclusive_ends = False
    config.sampling.stochasticity = 0.0  # of the flow map; 0: none
    config.sampling.stochastic = "renoise"  # renoise, or euler: as published
    config.sampling.noise_scale = "ode"  # of dpm_solver_…m: a name in NOISE_SCALES; all but ode take fresh noise
    # of flowturbo: H (Heun), P (pseudo-corrector), R (refiner) and numbers, such as H1P5R
    config.sampling.pattern = "P"
    # of R in the pattern: a workdir of the objective velocity_refiner, or one of its checkpoints
    config.sampling.refiner = ""
    config.sampling.unipc_variant = "bh2"  # of unipc_2 and unipc_3: bh2, or bh1
    config.sampling.diffusion = "sbdm"  # of the samplers sde and sde_heun: a name in DIFFUSIONS, times the scale below
    config.sampling.diffusion_scale = 1.0
    config.sampling.last_step = "mean"  # of sde and sde_heun, without noise: mean, euler or tweedie
    # evaluations that take place at once, in sweeps until they agree; 0: one after another
    config.sampling.parallel = 0
    config.sampling.tolerance = 1e-3  # of parallel: by which a state may still change, relative to the first ones
    # of Euler's method in which the head of difference_transition_matching draws a prediction
    config.sampling.draw_steps = 16
    config.sampling.int8 = False  # products of the blocks' weights in int8, scaled by row and by output channel
    # What samples are led to by a loss on their estimate, and how.
    config.sampling.steering = ConfigDict()
    # What is asked of samples: a name in OPERATORS, with numbers behind it, such as super_resolution:4; or a reward:
    # classifier, similarity, image_similarity, or a name in REWARDS. "": nothing, which is so wherever nothing says
    # what was measured.
    config.sampling.steering.operator = ""
    # gradient skipped: flowchef; through the network: dps; hard consistency: resample
    config.sampling.steering.method = "flowchef"
    config.sampling.steering.scale = 1.0  # s, the length of a step of the gradient
    config.sampling.steering.loss = "squared"  # of the residual of an image: squared, or norm: as DPS has it
    # of the image: x̂ of the prediction, or the end of one more jump to data: end
    config.sampling.steering.estimate = "prediction"
    config.sampling.steering.iterations = 1  # at each time; for resample, of Gauss and Newton's
    config.sampling.steering.gamma = 40.0  # γ of resample: how soon the plan's own state is left for the renoised one
    config.sampling.steering.feather = 0.0  # standard deviation in pixels by which the mask is blurred
    # the file of the classifier that judges, as python -m tim_jax.classify writes it
    config.sampling.steering.classifier = ""

    # How samples are measured, by python -m tim_jax.evaluate and while training.
    config.evaluation = ConfigDict()
    # the part that is held out; "": none; "auto": held_out, validation, test, … if there is one
    config.evaluation.held_out = "auto"
    config.evaluation.num_samples = 0  # per step count and seed; 0: as many as the training part has images
    # of samples: "data", as often as in the training part; "balanced", each class in it alike
    config.evaluation.labels = "data"
    config.evaluation.batch_size = 512
    config.evaluation.features = "pixels"  # what images are compared by: a name in tim_jax.evaluation.FEATURES
    config.evaluation.inception = ""  # file of the weights of "inception"; "": below loader.directory
    # published folder of "dinov2", or hf://owner/repository; "": dinov2-large below loader.directory
    config.evaluation.dinov2 = ""
    # names in tim_jax.evaluation.METRICS, and bits_per_dim; (): all that the features can serve
    config.evaluation.metrics = ()
    config.evaluation.reference = ""  # a stored or published (npz) reference in place of the training part
    config.evaluation.source = ""  # of real images of the samples' size, as data.source; "": that of training
    config.evaluation.path = ""  # where these are, as data.path
    config.evaluation.max_images = 10000  # of which kernel distances, precision and recall look at single features
    config.evaluation.likelihood = ConfigDict()
    config.evaluation.likelihood.steps = 64  # of the Runge-Kutta method, of four network evaluations each
    # vectors of Hutchinson's estimate of the divergence; 0: exact, a pass for each number of an image
    config.evaluation.likelihood.probes = 1
    config.evaluation.likelihood.num_images = 1000  # of the training and of the held-out part, at random; 0: all
    # while training
    config.evaluation.periodic = ConfigDict()
    config.evaluation.periodic.every = 0  # steps of training between evaluations; 0: none
    config.evaluation.periodic.steps = (1, 2, 4, 8)  # step counts that are sampled with
    config.evaluation.periodic.num_samples = 0  # per step count; 0: as evaluation.num_samples
    config.evaluation.periodic.emas = ()  # names of EMAs, or "online"; (): sampling.ema

    return config
