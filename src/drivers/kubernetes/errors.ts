import { ServiceErrors } from '../oci/service-errors.ts';

/** Nobody starts a pod, and one may answer before its cluster says that it runs. */
export const errors = new ServiceErrors('Kubernetes', {
  list: 'kubectl get pods',
  run: (name) => `Wait until its cluster says that it runs (kubectl wait --for=condition=Ready pod/${name})`,
  free: (name) => `kubectl delete pod ${name}`,
});
