"""Makes unseen_schedules.json with diffusers: schedulers in configurations that the shipped models
do not have, driven by a formula in place of a network. Run in this folder."""
import json
import re
import tempfile

import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler,
                       LMSDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler)

A, B, C, SEED = 0.3, 0.1, 100.0, 1234
DPM, UNIPC, EULER = DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler
S = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
V = dict(prediction_type="v_prediction")
OWN = [
    (PNDMScheduler, dict(S, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)),
    (PNDMScheduler, dict(S, skip_prk_steps=True, set_alpha_to_one=True,
                         timestep_spacing="trailing")),
    (EULER, dict(S, steps_offset=1, timestep_spacing="leading")),
    (EULER, dict(S, **V, timestep_spacing="trailing", rescale_betas_zero_snr=True)),
    (EULER, dict(S, timestep_spacing="linspace", use_karras_sigmas=True)),
    (EULER, dict(S, interpolation_type="log_linear", final_sigmas_type="sigma_min")),
    (EulerAncestralDiscreteScheduler, dict(beta_start=0.0001, beta_end=0.02, beta_schedule="linear",
                                           num_train_timesteps=500, timestep_spacing="trailing")),
    (EulerAncestralDiscreteScheduler, dict(S, **V, rescale_betas_zero_snr=True,
                                           timestep_spacing="trailing")),
    (DDIMScheduler, dict(S, clip_sample=False, set_alpha_to_one=False, steps_offset=1)),
    (DDIMScheduler, dict(S, **V, clip_sample=False, rescale_betas_zero_snr=True,
                         timestep_spacing="trailing")),
    (DPM, dict(S, solver_order=1)),
    (DPM, dict(S, solver_order=3, final_sigmas_type="sigma_min")),
    (DPM, dict(S, solver_type="heun", euler_at_final=True, timestep_spacing="leading",
               steps_offset=1)),
    (DPM, dict(S, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True, solver_type="heun")),
    (DPM, dict(S, use_lu_lambdas=True, timestep_spacing="trailing")),
    (DPM, dict(S, **V, lower_order_final=False, lambda_min_clipped=-5.1)),
    (UNIPC, dict(S)),
    (UNIPC, dict(S, solver_order=3, solver_type="bh2", predict_x0=False,
                 final_sigmas_type="sigma_min", lower_order_final=False)),
    (UNIPC, dict(S, **V, use_karras_sigmas=True, timestep_spacing="trailing")),
    (LCMScheduler, dict(S, original_inference_steps=50, timestep_scaling=10.0)),
    (LCMScheduler, dict(S, **V, original_inference_steps=100, timestep_scaling=5.0,
                        set_alpha_to_one=False)),
    (HeunDiscreteScheduler, dict(S, timestep_spacing="leading", steps_offset=1)),
    (HeunDiscreteScheduler, dict(S, **V, use_karras_sigmas=True)),
    (LMSDiscreteScheduler, dict(S, timestep_spacing="trailing")),
    (LMSDiscreteScheduler, dict(S, **V, use_karras_sigmas=True)),
    (LMSDiscreteScheduler, dict(S, num_train_timesteps=30,
                                trained_betas=[0.001 * i + 0.0001 for i in range(1, 31)])),
    (PNDMScheduler, dict(S, **V, skip_prk_steps=True, steps_offset=1)),
    (DDIMScheduler, dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample",
                         clip_sample=False, set_alpha_to_one=False)),
    (DPM, dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)),
    (DPM, dict(S, prediction_type="sample", solver_order=2)),
    (EULER, dict(S, prediction_type="sample", timestep_spacing="trailing")),
]
NAMES = {  # --scheduler: the class, and what it sets
    "euler": (EULER, {}),
    "dpm++2m-karras": (DPM, dict(use_karras_sigmas=True, algorithm_type="dpmsolver++")),
    "dpm++2m-sde": (DPM, dict(algorithm_type="sde-dpmsolver++")),
    "unipc": (UNIPC, {}),
    "lcm": (LCMScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
}
ENDS = dict(S, use_karras_sigmas=True, sigma_min=0.05, sigma_max=12.0)
OTHER = [
    ("dpm++2m-sde", DPM, dict(S, solver_order=3, final_sigmas_type="sigma_min")),
    ("dpm++2m-sde", DPM, dict(S, solver_type="heun", timestep_spacing="leading", steps_offset=1)),
    ("dpm++2m-sde", UNIPC, dict(S, solver_order=3)),
    ("dpm++2m-karras", EULER, ENDS), ("heun", EULER, ENDS), ("lms", EULER, ENDS),
    ("lcm", DPM, dict(S)),
    ("unipc", PNDMScheduler, dict(S, skip_prk_steps=True, steps_offset=1)),
    ("euler", DDIMScheduler, dict(S, **V, clip_sample=False, rescale_betas_zero_snr=True,
                                  timestep_spacing="trailing")),
]
x0 = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(77))


def saved(cls, options):
    """The config as its file has it: with the class's defaults written out."""
    with tempfile.TemporaryDirectory() as folder:
        cls(**options).save_pretrained(folder)
        config = json.load(open(folder + "/scheduler_config.json"))
    del config["_diffusers_version"]
    return config


def case(cls, config, steps, name=None, over={}):
    scheduler = cls.from_config(config, **over)
    scheduler.set_timesteps(steps)
    x = x0.clone() * scheduler.init_noise_sigma
    takes = "generator" in scheduler.step.__code__.co_varnames
    more = {"generator": torch.Generator().manual_seed(SEED)} if takes else {}
    for t in scheduler.timesteps:
        e = A * scheduler.scale_model_input(x, t) + B * torch.sin(t.float() / C)
        x = scheduler.step(e, t, x, **more).prev_sample
    assert torch.isfinite(x).all()
    made = dict(config=config, steps=steps, init=float(scheduler.init_noise_sigma),
                timesteps=[float(t) for t in scheduler.timesteps],
                last=[float(v) for v in x.flatten()])
    return dict(made, name=name) if name else made


cases = [case(cls, saved(cls, o), n) for cls, o in OWN for n in (1, 2, 3, 6, 17)]
cases += [case(NAMES[name][0], saved(cls, o), n, name, NAMES[name][1])
          for n in (3, 7, 17) for name, cls, o in OTHER]
head = dict(a=A, b=B, c=C, noise_seed=SEED, x0=[float(v) for v in x0.flatten()])
text = json.dumps(head)[:-1] + ',\n"cases":[\n'
text += ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]}\n"
text = re.sub(r"-?\d+\.\d{7,}(e-?\d+)?", lambda m: "%.9g" % float(m.group()), text)
text = re.sub(r":-Infinity", ':"-Infinity"', text)  # JSON has none
open("unseen_schedules.json", "w").write(text)
print(len(cases), "cases")
