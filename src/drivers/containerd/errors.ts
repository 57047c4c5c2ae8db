import { ServiceErrors } from '../oci/service-errors.ts';

export const errors = new ServiceErrors('containerd', {
  list: 'ctr containers ls',
  run: (name) => `Start it (ctr tasks start --detach ${name})`,
  free: (name) => `ctr containers rm ${name}`,
});
